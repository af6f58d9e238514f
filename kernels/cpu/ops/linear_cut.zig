//! How a linear layer is cut into items. The cut changes speed, never results.
const std = @import("std");
const types = @import("../../abi/types.zig");
const layout = @import("../layout.zig");
const simd = @import("../simd.zig");

const tile = layout.tile;

/// Rows of an item at most: their x and sums stay in the L2 cache beside a weight tile's block.
pub const max_rows = 96;

/// f32 sums of an item at most.
pub const max_sums = 128 * 1024;

/// An item should take at least this long, so that claiming it (about 100 ns) does not show, unless
/// threads would get fewer than two.
const min_item_ns = 2_500;

/// Longer items save nothing, and leave the other threads waiting for the last one.
const max_item_ns = 1_000_000;

/// Items a thread should get where there is enough work: one that starts late or is interrupted
/// then costs little.
const items_per_thread = 8;

/// Rough costs, on a 3 GHz core: one dot product instruction (two multiply-adds where there is
/// none), and one pair of a weight tile (256 bytes) from memory.
const dot_ns: f64 = if (simd.bf16_dot) 0.3 else 0.6;
const weight_pair_ns: f64 = 12;

/// Rows and weight tiles of one item; kept in the descriptor's `reserved` field between plan and
/// run.
pub const Cut = packed struct(u32) {
    rows: u16,
    tiles: u16,

    pub fn items(cut: Cut, desc: *const types.LinearDesc) u32 {
        return divCeil(desc.x.shape[0], cut.rows) * divCeil(outTiles(desc), cut.tiles);
    }

    /// Items that read the same weights are neighbours.
    pub fn part(cut: Cut, desc: *const types.LinearDesc, item: u32) Part {
        const row_blocks = divCeil(desc.x.shape[0], cut.rows);
        const row_start = item % row_blocks * cut.rows;
        const tile_start = item / row_blocks * cut.tiles;
        return .{
            .row_start = row_start,
            .row_end = @min(desc.x.shape[0], row_start + cut.rows),
            .tile_start = tile_start,
            .tile_end = @min(outTiles(desc), tile_start + cut.tiles),
            .columns = outColumns(desc),
            .weight_tiles = divCeil(desc.weight.n, tile),
            .slots_per_tile = slotsPerTile(desc),
        };
    }
};

/// What one item computes: rows [row_start, row_end) of the tiles [tile_start, tile_end) of out's
/// columns. The sums of the weight tiles that it needs lie in slots, `slots_per_tile` for each tile
/// of out.
pub const Part = struct {
    row_start: usize,
    row_end: usize,
    tile_start: usize,
    tile_end: usize,
    columns: usize,
    weight_tiles: usize,
    slots_per_tile: usize,

    pub fn rows(part: Part) usize {
        return part.row_end - part.row_start;
    }

    pub fn slots(part: Part) usize {
        return (part.tile_end - part.tile_start) * part.slots_per_tile;
    }

    /// The weight tile of a slot: a tile of out, then with silu_mul the one or two tiles that hold
    /// its up columns. Null past the end.
    pub fn weightTile(part: Part, slot: usize) ?usize {
        const out_tile = part.tile_start + slot / part.slots_per_tile;
        const which = slot % part.slots_per_tile;
        if (which == 0) return out_tile;
        const index = part.columns / tile + out_tile + which - 1;
        return if (index < part.weight_tiles) index else null;
    }
};

pub fn choose(desc: *const types.LinearDesc, threads: u32) Cut {
    const rows = desc.x.shape[0];
    const tiles = outTiles(desc);
    var block = evenPart(rows, max_rows);
    while (block > 24 and divCeil(rows, block) * tiles < items_per_thread / 2 * threads) {
        const half = divCeil(block, 2);
        if (tileNs(desc, half) < min_item_ns) break;
        block = half;
    }
    const tile_ns = tileNs(desc, block);
    const units = divCeil(rows, block) * tiles;
    const long_enough: u32 = @intFromFloat(@ceil(min_item_ns / tile_ns));
    const share = units / (items_per_thread * threads);
    const wanted = @max(share, @min(long_enough, units / (2 * threads)));
    const not_too_long: u32 = @intFromFloat(max_item_ns / tile_ns);
    const most = @min(not_too_long, max_sums / (block * tile * slotsPerTile(desc)));
    const group = evenPart(tiles, @max(1, @min(wanted, most)));
    return .{ .rows = @intCast(block), .tiles = @intCast(group) };
}

/// Time of `rows` rows and one tile of out, roughly.
fn tileNs(desc: *const types.LinearDesc, rows: u32) f64 {
    const pairs: f64 = @floatFromInt(@as(u64, desc.weight.k) * slotsPerTile(desc) / 2 + 1);
    const dots: f64 = @floatFromInt(rows * (tile / simd.W));
    return pairs * @max(dots * dot_ns, weight_pair_ns);
}

fn outColumns(desc: *const types.LinearDesc) u32 {
    return if (desc.epilogue == .silu_mul) desc.weight.n / 2 else desc.weight.n;
}

fn outTiles(desc: *const types.LinearDesc) u32 {
    return divCeil(outColumns(desc), tile);
}

fn slotsPerTile(desc: *const types.LinearDesc) u32 {
    if (desc.epilogue != .silu_mul) return 1;
    return if (outColumns(desc) % tile == 0) 2 else 3;
}

/// The size of the parts when `total` is cut evenly into parts of at most `most`.
fn evenPart(total: u32, most: u32) u32 {
    return divCeil(total, @max(1, divCeil(total, most)));
}

fn divCeil(a: u32, b: u32) u32 {
    return std.math.divCeil(u32, a, b) catch unreachable;
}
