const std = @import("std");
const types = @import("../../abi/types.zig");
const errors = @import("../../core/errors.zig");
const access = @import("../access.zig");
const Context = @import("../context.zig").Context;

/// RmsNormParams in src/elementwise.cu.
const Params = extern struct {
    x: u64,
    delta: u64,
    weight: u64,
    out: u64,
    n: u32,
    inverse_n: f32,
    eps: f32,
    vector: u32,
};

comptime {
    std.debug.assert(@sizeOf(Params) == 48);
}

const max_threads = 1024;

/// A block a row. n alone decides the kernel and its threads, and so the order of the sum.
pub fn rms_norm(ctx: *Context, desc: *const types.RmsNormDesc) errors.Error!void {
    const rows, const n = desc.x.shape[0..2].*;
    const addresses = [_]u64{ desc.x.data, desc.delta.data, desc.weight.data, desc.out.data };
    const params: Params = .{
        .x = desc.x.data,
        .delta = desc.delta.data,
        .weight = desc.weight.data,
        .out = desc.out.data,
        .n = n,
        .inverse_n = 1 / @as(f32, @floatFromInt(n)),
        .eps = desc.eps,
        .vector = @intFromBool(access.wideRows(n, &addresses)),
    };
    if (n <= max_threads * access.chunk) return ctx.launch(
        .{ .module = .elementwise, .name = "md_rms_norm" },
        .{
            .grid = .{ rows, 1, 1 },
            .block = access.threads(access.blocks(n, access.chunk), max_threads),
        },
        &params,
    );
    return ctx.launch(
        .{ .module = .elementwise, .name = "md_rms_norm_long" },
        .{ .grid = .{ rows, 1, 1 }, .block = max_threads },
        &params,
    );
}
