const std = @import("std");
const types = @import("../../abi/types.zig");
const errors = @import("../../core/errors.zig");
const Context = @import("../context.zig").Context;

/// SnapSelectParams in src/snapkv.cu.
const Params = extern struct {
    scores: u64,
    lens: u64,
    indices: u64,
    prefix_len: u64,
    tail_start: u64,
    pooled: u64,
    kv_heads: u32,
    max_tokens: u32,
    n: u32,
    budget: u32,
    window: u32,
    kernel: u32,
    max_pooling: u32,
    reserved: u32 = 0,
};

comptime {
    std.debug.assert(@sizeOf(Params) == 80);
}

/// A block a (sequence, KV head).
pub fn snap_select(ctx: *Context, desc: *const types.SnapSelectDesc) errors.Error!void {
    const b, const kv_heads, const max_tokens = desc.scores.shape[0..3].*;
    const params: Params = .{
        .scores = desc.scores.data,
        .lens = desc.lens.data,
        .indices = desc.indices.data,
        .prefix_len = desc.prefix_len.data,
        .tail_start = desc.tail_start.data,
        .pooled = desc.pooled.data,
        .kv_heads = kv_heads,
        .max_tokens = max_tokens,
        .n = desc.indices.shape[2],
        .budget = desc.budget,
        .window = desc.window,
        .kernel = desc.kernel,
        .max_pooling = @intFromBool(desc.pooling == .max),
    };
    return ctx.launch(
        .{ .module = .snapkv, .name = "md_snap_select_heads" },
        .{ .grid = .{ b * kv_heads, 1, 1 }, .block = 1024 },
        &params,
    );
}
