//! Causal attention of many new rows over the paged cache, on Hopper. The kernel is described in
//! src/attention_prefill.cu.
const std = @import("std");
const types = @import("../../abi/types.zig");
const errors = @import("../../core/errors.zig");
const tensor_map = @import("../tensor_map.zig");
const tiles = @import("../tiles.zig").attention_prefill;
const Context = @import("../context.zig").Context;

/// AttentionPrefillParams in src/attention_prefill.cu.
const Params = extern struct {
    q: tensor_map.TensorMap,
    out: u64,
    q_start: u64,
    kv_len: u64,
    block_table: u64,
    ticket: u64,
    cache: types.KvCache,
    layer: u32,
    sequences: u32,
    heads: u32,
    max_pages: u32,
    heads_together: u32,
    scale_log2: f32,
};

comptime {
    std.debug.assert(@sizeOf(Params) == 256);
}

/// Whether this kernel computes it: full attention with the head dims that fit its registers.
pub fn takes(ctx: *const Context, desc: *const types.AttentionDesc) bool {
    const full = desc.window == 0 and desc.prefix_table.data == 0 and desc.indices.data == 0;
    const head_dim = desc.cache.head_dim;
    return ctx.hopper() and full and (head_dim == 64 or head_dim == 128) and desc.scale > 0;
}

/// `desc` is one that the kernel takes.
pub fn prefill(ctx: *Context, desc: *const types.AttentionDesc) errors.Error!void {
    return switch (desc.cache.head_dim) {
        64 => enqueue(ctx, desc, tiles.head_dim_64, "md_attention_prefill_64"),
        128 => enqueue(ctx, desc, tiles.head_dim_128, "md_attention_prefill_128"),
        else => unreachable,
    };
}

/// Blocks stay and draw tiles of query rows, whose number only the device knows; it is at most one
/// a sequence more than all rows would fill.
fn enqueue(
    ctx: *Context,
    desc: *const types.AttentionDesc,
    shape: tiles.Shape,
    comptime name: [:0]const u8,
) errors.Error!void {
    const rows, const heads, const head_dim = desc.q.shape[0..3].*;
    const sequences = desc.kv_len.shape[0];
    if (rows == 0 or sequences == 0) return;
    const columns = @as(u64, heads) * head_dim;
    const items = (std.math.divCeil(u64, rows, shape.rows()) catch unreachable) + sequences;
    const params: Params = .{
        .q = try tensor_map.encode2d(
            ctx,
            .bf16,
            desc.q.data,
            rows,
            columns,
            columns * @sizeOf(u16),
            tiles.box_rows,
            tiles.box_columns,
            .b128,
        ),
        .out = desc.out.data,
        .q_start = desc.q_start.data,
        .kv_len = desc.kv_len.data,
        .block_table = desc.block_table.data,
        .ticket = ctx.tickets,
        .cache = desc.cache,
        .layer = desc.layer,
        .sequences = sequences,
        .heads = heads,
        .max_pages = desc.block_table.shape[1],
        .heads_together = heads / desc.cache.kv_heads * tiles.kv_heads_together,
        .scale_log2 = desc.scale * std.math.log2e,
    };
    return ctx.launch(.{ .module = .attention_prefill, .name = name }, .{
        .grid = .{ @intCast(@min(ctx.sm_count, items * heads)), 1, 1 },
        .block = shape.threads(),
        .shared_bytes = shape.sharedBytes(head_dim),
    }, &params);
}
