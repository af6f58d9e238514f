const std = @import("std");
const types = @import("../../abi/types.zig");
const errors = @import("../../core/errors.zig");
const access = @import("../access.zig");
const Context = @import("../context.zig").Context;

/// SiluMulParams in src/elementwise.cu.
const Params = extern struct { gate_up: u64, out: u64, n: u32, vector: u32 };

comptime {
    std.debug.assert(@sizeOf(Params) == 24);
}

/// Blocks of (row, part of the row).
pub fn silu_mul(ctx: *Context, desc: *const types.SiluMulDesc) errors.Error!void {
    const rows, const n = desc.out.shape[0..2].*;
    const chunks = access.blocks(n, access.chunk);
    const block = access.threads(chunks, 256);
    return ctx.launch(
        .{ .module = .elementwise, .name = "md_silu_mul" },
        .{ .grid = .{ rows, access.blocks(chunks, block), 1 }, .block = block },
        &Params{
            .gate_up = desc.gate_up.data,
            .out = desc.out.data,
            .n = n,
            .vector = @intFromBool(access.wideRows(n, &.{ desc.gate_up.data, desc.out.data })),
        },
    );
}
