//! Linear layers of up to 16 rows on Hopper. The kernel is described in src/linear_skinny.cu.
const std = @import("std");
const types = @import("../../abi/types.zig");
const errors = @import("../../core/errors.zig");
const access = @import("../access.zig");
const layout = @import("../layout.zig");
const tiles = @import("../tiles.zig").linear_skinny;
const Context = @import("../context.zig").Context;

/// LinearSkinnyParams in src/linear_skinny.cu.
const Params = extern struct {
    x: u64,
    weight: u64,
    bias: u64,
    residual: u64,
    out: u64,
    rows: u32,
    k: u32,
    columns: u32,
    units: u32,
    out_f32: u32,
    reserved: u32 = 0,
};

comptime {
    std.debug.assert(@sizeOf(Params) == 64);
}

/// `desc` is one that linear_tiled.takes, of 1 to 16 rows.
pub fn linear(ctx: *Context, desc: *const types.LinearDesc) errors.Error!void {
    const silu_mul = desc.epilogue == .silu_mul;
    const columns = if (silu_mul) desc.weight.n / 2 else desc.weight.n;
    const units = columns / layout.slab_rows;
    const params: Params = .{
        .x = desc.x.data,
        .weight = desc.weight.data,
        .bias = desc.bias.data,
        .residual = desc.residual.data,
        .out = desc.out.data,
        .rows = desc.x.shape[0],
        .k = desc.weight.k,
        .columns = columns,
        .units = units,
        .out_f32 = @intFromBool(desc.out.dtype == .f32),
    };
    const blocks = @min(units, ctx.sm_count);
    const of_pass = if (silu_mul) 1 else unitsOfPass(units, blocks);
    return if (desc.x.shape[0] <= 8)
        enqueue(ctx, 8, of_pass, silu_mul, blocks, &params)
    else
        enqueue(ctx, 16, of_pass, silu_mul, blocks, &params);
}

/// All of a block's units at once where they are few: x is then read once.
fn unitsOfPass(units: u32, blocks: u32) u32 {
    const of_block = access.blocks(units, blocks);
    return if (of_block <= tiles.most_units) of_block else tiles.units_of_many;
}

fn enqueue(
    ctx: *Context,
    comptime tokens: u32,
    of_pass: u32,
    silu_mul: bool,
    blocks: u32,
    params: *const Params,
) errors.Error!void {
    const prefix = std.fmt.comptimePrint("md_linear_skinny_{d}_", .{tokens});
    if (silu_mul) return start(ctx, prefix ++ "silu", tokens, 1, true, blocks, params);
    return switch (of_pass) {
        1 => start(ctx, prefix ++ "1", tokens, 1, false, blocks, params),
        2 => start(ctx, prefix ++ "2", tokens, 2, false, blocks, params),
        3 => start(ctx, prefix ++ "3", tokens, 3, false, blocks, params),
        else => unreachable,
    };
}

fn start(
    ctx: *Context,
    comptime name: [:0]const u8,
    tokens: u32,
    of_pass: u32,
    silu_mul: bool,
    blocks: u32,
    params: *const Params,
) errors.Error!void {
    return ctx.launch(.{ .module = .linear_skinny, .name = name }, .{
        .grid = .{ blocks, 1, 1 },
        .block = tiles.warps * 32,
        .shared_bytes = tiles.sharedBytes(tokens, of_pass, silu_mul),
    }, params);
}

test "a block's units are one pass where they are few" {
    try std.testing.expectEqual(3, unitsOfPass(384, 132));
    try std.testing.expectEqual(2, unitsOfPass(256, 132));
    try std.testing.expectEqual(1, unitsOfPass(12, 12));
    try std.testing.expectEqual(2, unitsOfPass(8016, 132));
}

test "what a block shares fits" {
    for ([_]u32{ 8, 16 }) |tokens| for (1..tiles.most_units + 1) |units| {
        const bytes = tiles.sharedBytes(tokens, @intCast(units), false);
        try std.testing.expect(bytes <= 227 * 1024);
    };
    try std.testing.expect(tiles.sharedBytes(16, 1, true) <= 227 * 1024);
}
