const std = @import("std");
const types = @import("../../abi/types.zig");
const errors = @import("../../core/errors.zig");
const access = @import("../access.zig");
const context_mod = @import("../context.zig");
const Context = context_mod.Context;

/// CastParams in src/elementwise.cu.
const Params = extern struct { source: u64, out: u64, elements: u64, vector: u64 };

comptime {
    std.debug.assert(@sizeOf(Params) == 32);
}

const block = 256;

pub fn cast(ctx: *Context, desc: *const types.CastDesc) errors.Error!void {
    const params: Params = .{
        .source = desc.source.data,
        .out = desc.out.data,
        .elements = access.elements(desc.out),
        .vector = @intFromBool(access.wide(&.{ desc.source.data, desc.out.data })),
    };
    const config: context_mod.LaunchConfig = .{
        .grid = .{ access.blocks(params.elements, block * access.chunk), 1, 1 },
        .block = block,
    };
    if (desc.out.dtype == .bf16) {
        return ctx.launch(.{ .module = .elementwise, .name = "md_cast_narrow" }, config, &params);
    }
    return ctx.launch(.{ .module = .elementwise, .name = "md_cast_widen" }, config, &params);
}
