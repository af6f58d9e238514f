const std = @import("std");
const types = @import("../../abi/types.zig");
const errors = @import("../../core/errors.zig");
const access = @import("../access.zig");
const Context = @import("../context.zig").Context;
const skinny = @import("linear_skinny.zig");
const cluster = @import("linear_cluster.zig");
const tiled = @import("linear_tiled.zig");
const most_skinny_rows = @import("../tiles.zig").linear_skinny.most_rows;

/// LinearPortableParams in src/linear_portable.cu.
const PortableParams = extern struct {
    x: u64,
    weight: u64,
    bias: u64,
    residual: u64,
    out: u64,
    rows: u32,
    n: u32,
    k: u32,
    columns: u32,
    silu_mul: u32,
    out_f32: u32,
};

comptime {
    std.debug.assert(@sizeOf(PortableParams) == 64);
}

pub fn linear(ctx: *Context, desc: *const types.LinearDesc) errors.Error!void {
    if (desc.x.shape[0] == 0) return;
    // All have the same order of sums: which one it is changes no bit.
    if (tiled.takes(ctx, desc)) {
        if (desc.x.shape[0] <= most_skinny_rows) return skinny.linear(ctx, desc);
        return if (cluster.takes(ctx, desc)) cluster.linear(ctx, desc) else tiled.linear(ctx, desc);
    }
    return portable(ctx, desc);
}

fn portable(ctx: *Context, desc: *const types.LinearDesc) errors.Error!void {
    const columns = if (desc.epilogue == .silu_mul) desc.weight.n / 2 else desc.weight.n;
    const params: PortableParams = .{
        .x = desc.x.data,
        .weight = desc.weight.data,
        .bias = desc.bias.data,
        .residual = desc.residual.data,
        .out = desc.out.data,
        .rows = desc.x.shape[0],
        .n = desc.weight.n,
        .k = desc.weight.k,
        .columns = columns,
        .silu_mul = @intFromBool(desc.epilogue == .silu_mul),
        .out_f32 = @intFromBool(desc.out.dtype == .f32),
    };
    return ctx.launch(
        .{ .module = .linear_portable, .name = "md_linear_portable" },
        .{
            .grid = .{ access.blocks(columns, 64), access.blocks(desc.x.shape[0], 32), 1 },
            .block = 128,
        },
        &params,
    );
}
