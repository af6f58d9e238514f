const std = @import("std");
const types = @import("../../abi/types.zig");
const errors = @import("../../core/errors.zig");
const access = @import("../access.zig");
const Context = @import("../context.zig").Context;

/// AddParams in src/elementwise.cu.
const Params = extern struct { a: u64, b: u64, out: u64, elements: u64, vector: u64 };

comptime {
    std.debug.assert(@sizeOf(Params) == 40);
}

const block = 256;

pub fn add(ctx: *Context, desc: *const types.AddDesc) errors.Error!void {
    const elements = access.elements(desc.out);
    return ctx.launch(
        .{ .module = .elementwise, .name = "md_add" },
        .{ .grid = .{ access.blocks(elements, block * access.chunk), 1, 1 }, .block = block },
        &Params{
            .a = desc.a.data,
            .b = desc.b.data,
            .out = desc.out.data,
            .elements = elements,
            .vector = @intFromBool(access.wide(&.{ desc.a.data, desc.b.data, desc.out.data })),
        },
    );
}
