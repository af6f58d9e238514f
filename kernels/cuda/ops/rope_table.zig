const std = @import("std");
const types = @import("../../abi/types.zig");
const errors = @import("../../core/errors.zig");
const access = @import("../access.zig");
const Context = @import("../context.zig").Context;

/// RopeTableParams in src/rope.cu.
const Params = extern struct {
    positions: u64,
    inv_freq: u64,
    out: u64,
    half: u32,
    scale: f32,
    view_tokens: u32,
    reserved: u32 = 0,
};

comptime {
    std.debug.assert(@sizeOf(Params) == 40);
}

/// Blocks of (row, part of the row): a thread an angle.
pub fn rope_table(ctx: *Context, desc: *const types.RopeTableDesc) errors.Error!void {
    const rows = desc.positions.shape[0];
    const half = desc.inv_freq.shape[0];
    const block = access.threads(half, 128);
    return ctx.launch(
        .{ .module = .rope, .name = "md_rope_table" },
        .{ .grid = .{ rows, access.blocks(half, block), 1 }, .block = block },
        &Params{
            .positions = desc.positions.data,
            .inv_freq = desc.inv_freq.data,
            .out = desc.out.data,
            .half = half,
            .scale = desc.scale,
            .view_tokens = desc.view_tokens,
        },
    );
}
