//! Copies the selected tokens' k and v into a compact cache, one tile of 64 tokens at a time.
const types = @import("../../abi/types.zig");
const kernel_mod = @import("../kernel.zig");
const layout = @import("../layout.zig");
const source_mod = @import("attention_source.zig");

const Desc = types.GatherKvDesc;

pub const gather_kv: kernel_mod.Kernel = kernel_mod.kernel(Desc, &.{Tiles});

/// Items are (sequence, KV head, tile); those beyond prefix_len do nothing. The rest of a last tile
/// is zeroed.
const Tiles = struct {
    pub fn plan(desc: *Desc, _: u32) u32 {
        return desc.indices.shape[0] * desc.indices.shape[1] * tilesPerList(desc);
    }

    pub fn run(desc: *const Desc, item: u32, _: *const kernel_mod.Scratch) void {
        const list: usize = item / tilesPerList(desc);
        const s = list / desc.indices.shape[1];
        const head = list % desc.indices.shape[1];
        const first = item % tilesPerList(desc) * layout.tile;
        const length = @max(kernel_mod.pointer(i32, desc.prefix_len)[s], 0);
        const end: u32 = @min(@as(u32, @intCast(length)), first + layout.tile);
        if (first >= end) return;
        const indices = kernel_mod.pointer(i32, desc.indices) + list * desc.indices.shape[2];
        const source_tables = kernel_mod.pointer(i32, desc.source_table);
        const source: source_mod.Pages = .{
            .cache = desc.source,
            .table = source_tables + s * desc.source_table.shape[1],
            .layer = desc.source_layer,
            .head = @intCast(head),
        };
        const out_tables = kernel_mod.pointer(i32, desc.out_table);
        const out: source_mod.Pages = .{
            .cache = desc.out,
            .table = out_tables + s * desc.out_table.shape[1],
            .layer = desc.out_layer,
            .head = @intCast(head),
        };
        const to = out.tile(first);
        source_mod.gatherTile(&source, indices[first..end], @constCast(to.k), @constCast(to.v));
    }
};

fn tilesPerList(desc: *const Desc) u32 {
    return (desc.indices.shape[2] + layout.tile - 1) / layout.tile;
}
