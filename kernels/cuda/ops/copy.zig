const std = @import("std");
const types = @import("../../abi/types.zig");
const errors = @import("../../core/errors.zig");
const access = @import("../access.zig");
const Context = @import("../context.zig").Context;

/// CopyParams in src/elementwise.cu.
const Params = extern struct {
    source: u64,
    out: u64,
    run_units: u64,
    source_stride: u64,
    out_stride: u64,
    units: u64,
};

comptime {
    std.debug.assert(@sizeOf(Params) == 48);
}

const block = 256;
/// kCopyUnits in src/elementwise.cu.
const units_per_thread = 4;

/// By the widest units that runs and strides are made of.
pub fn copy(ctx: *Context, desc: *const types.CopyDesc) errors.Error!void {
    if (desc.bytes == 0 or desc.count == 0) return;
    // One run has no stride that counts.
    const strided = desc.count > 1;
    const places = [_]u64{
        desc.source,
        desc.out,
        desc.bytes,
        if (strided) desc.source_stride else 0,
        if (strided) desc.out_stride else 0,
    };
    inline for (.{ 16, 4, 2 }) |unit_bytes| {
        if (access.alignedTo(unit_bytes, &places)) return copyUnits(ctx, desc, unit_bytes);
    }
    return copyUnits(ctx, desc, 1);
}

fn copyUnits(
    ctx: *Context,
    desc: *const types.CopyDesc,
    comptime unit_bytes: u64,
) errors.Error!void {
    const run_units = desc.bytes / unit_bytes;
    const units = run_units * desc.count;
    return ctx.launch(
        .{
            .module = .elementwise,
            .name = std.fmt.comptimePrint("md_copy_{d}", .{unit_bytes}),
        },
        .{ .grid = .{ access.blocks(units, block * units_per_thread), 1, 1 }, .block = block },
        &Params{
            .source = desc.source,
            .out = desc.out,
            .run_units = run_units,
            .source_stride = desc.source_stride,
            .out_stride = desc.out_stride,
            .units = units,
        },
    );
}
