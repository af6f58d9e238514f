const std = @import("std");
const types = @import("../../abi/types.zig");
const errors = @import("../../core/errors.zig");
const access = @import("../access.zig");
const layout = @import("../layout.zig");
const Context = @import("../context.zig").Context;

/// GatherKvParams in src/rope.cu.
const Params = extern struct {
    source: types.KvCache,
    out: types.KvCache,
    indices: u64,
    prefix_len: u64,
    source_table: u64,
    out_table: u64,
    n: u32,
    source_max_pages: u32,
    out_max_pages: u32,
    source_layer: u32,
    out_layer: u32,
    reserved: u32 = 0,
};

comptime {
    std.debug.assert(@sizeOf(Params) == 120);
}

const block = 256;

/// A block a tile of the lists of all (sequence, KV head).
pub fn gather_kv(ctx: *Context, desc: *const types.GatherKvDesc) errors.Error!void {
    const sequences, const kv_heads, const n = desc.indices.shape[0..3].*;
    const params: Params = .{
        .source = desc.source,
        .out = desc.out,
        .indices = desc.indices.data,
        .prefix_len = desc.prefix_len.data,
        .source_table = desc.source_table.data,
        .out_table = desc.out_table.data,
        .n = n,
        .source_max_pages = desc.source_table.shape[1],
        .out_max_pages = desc.out_table.shape[1],
        .source_layer = desc.source_layer,
        .out_layer = desc.out_layer,
    };
    const tiles = sequences * kv_heads * access.blocks(n, layout.kv_tile);
    inline for (.{ 64, 96, 128, 256 }) |head_dim| {
        if (desc.source.head_dim == head_dim) return ctx.launch(
            .{
                .module = .rope,
                .name = std.fmt.comptimePrint("md_gather_kv_{d}", .{head_dim}),
            },
            .{ .grid = .{ tiles, 1, 1 }, .block = block },
            &params,
        );
    }
    unreachable;
}
