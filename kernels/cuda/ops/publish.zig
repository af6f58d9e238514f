const std = @import("std");
const types = @import("../../abi/types.zig");
const errors = @import("../../core/errors.zig");
const access = @import("../access.zig");
const Context = @import("../context.zig").Context;

/// PublishParams in src/elementwise.cu.
const Params = extern struct {
    record: u64,
    ring: u64,
    counter: u64,
    slots: u32,
    bytes: u32,
    unit_bytes: u32,
    reserved: u32 = 0,
};

comptime {
    std.debug.assert(@sizeOf(Params) == 40);
}

/// One block, so that its barrier stands between the record and the counter.
pub fn publish(ctx: *Context, desc: *const types.PublishDesc) errors.Error!void {
    const slots, const bytes = desc.ring.shape[0..2].*;
    const places = [_]u64{ desc.record.data, desc.ring.data, bytes };
    return ctx.launch(
        .{ .module = .elementwise, .name = "md_publish" },
        .{ .grid = .{ 1, 1, 1 }, .block = access.threads(access.blocks(bytes, 4), 256) },
        &Params{
            .record = desc.record.data,
            .ring = desc.ring.data,
            .counter = desc.counter.data,
            .slots = slots,
            .bytes = bytes,
            .unit_bytes = if (access.alignedTo(16, &places))
                16
            else if (access.alignedTo(4, &places)) 4 else 1,
        },
    );
}
