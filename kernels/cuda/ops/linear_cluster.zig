//! Linear layers of 17 to 32 rows on Hopper. The kernel is described in src/linear_cluster.cu.
const std = @import("std");
const types = @import("../../abi/types.zig");
const errors = @import("../../core/errors.zig");
const access = @import("../access.zig");
const layout = @import("../layout.zig");
const tensor_map = @import("../tensor_map.zig");
const tiles = @import("../tiles.zig").linear_cluster;
const tiled = @import("linear_tiled.zig");
const context = @import("../context.zig");
const Context = context.Context;

/// LinearClusterParams in src/linear_cluster.cu.
const Params = extern struct {
    x: tensor_map.TensorMap,
    weight: u64,
    bias: u64,
    residual: u64,
    out: u64,
    rows: u32,
    columns: u32,
    slabs: u32,
    silu_mul: u32,
    out_f32: u32,
    weight_tiles: u32,
};

comptime {
    std.debug.assert(@sizeOf(Params) == 192);
}

const kernel: context.Kernel = .{ .module = .linear_cluster, .name = "md_linear_cluster_32" };

/// Whether this kernel computes what linear_tiled takes: every block of a cluster needs a segment,
/// and many tiles fill the chip as they are.
pub fn takes(ctx: *const Context, desc: *const types.LinearDesc) bool {
    const few = tileCount(desc) < tiles.most_rounds * ctx.sm_count;
    return desc.x.shape[0] <= tiles.tokens and slabsOf(desc) >= tiles.blocks and few;
}

/// `desc` is one that the kernel takes, of at least one row.
pub fn linear(ctx: *Context, desc: *const types.LinearDesc) errors.Error!void {
    const weight_tiles = tileCount(desc);
    const params: Params = .{
        .x = try tiled.tokenMap(ctx, desc, tiles.tokens),
        .weight = desc.weight.data,
        .bias = desc.bias.data,
        .residual = desc.residual.data,
        .out = desc.out.data,
        .rows = desc.x.shape[0],
        .columns = tiled.outputColumns(desc),
        .slabs = slabsOf(desc),
        .silu_mul = @intFromBool(desc.epilogue == .silu_mul),
        .out_f32 = @intFromBool(desc.out.dtype == .f32),
        .weight_tiles = weight_tiles,
    };
    var config: context.LaunchConfig = .{
        .grid = .{ tiles.blocks, 1, 1 },
        .block = tiles.threads,
        .shared_bytes = tiles.sharedBytes(),
    };
    // One that had to wait for another to end would double the time.
    const clusters = @min(weight_tiles, try ctx.mostClusters(kernel, config));
    config.grid[0] = clusters * tiles.blocks;
    return ctx.launch(kernel, config, &params);
}

/// With SiLU a tile is the gate rows of half as many columns and their up rows.
fn tileCount(desc: *const types.LinearDesc) u32 {
    const paired: u32 = if (desc.epilogue == .silu_mul) 2 else 1;
    return access.blocks(tiled.outputColumns(desc), tiles.tile_rows / paired);
}

fn slabsOf(desc: *const types.LinearDesc) u32 {
    return access.blocks(desc.weight.k, layout.slab_k);
}

test "what a block shares fits" {
    try std.testing.expect(tiles.sharedBytes() <= 227 * 1024);
}
