const std = @import("std");
const types = @import("../../abi/types.zig");
const errors = @import("../../core/errors.zig");
const access = @import("../access.zig");
const Context = @import("../context.zig").Context;

/// PositionsParams in src/elementwise.cu.
const Params = extern struct {
    lens: u64,
    positions: u64,
    kv_len: u64,
    rows: u32,
    r: u32,
    offset: i32,
    reserved: u32 = 0,
};

comptime {
    std.debug.assert(@sizeOf(Params) == 40);
}

const block = 256;

pub fn positions(ctx: *Context, desc: *const types.PositionsDesc) errors.Error!void {
    const rows = desc.positions.shape[0];
    return ctx.launch(
        .{ .module = .elementwise, .name = "md_positions" },
        .{ .grid = .{ access.blocks(rows, block), 1, 1 }, .block = block },
        &Params{
            .lens = desc.lens.data,
            .positions = desc.positions.data,
            .kv_len = desc.kv_len.data,
            .rows = rows,
            .r = rows / desc.lens.shape[0],
            .offset = desc.offset,
        },
    );
}
