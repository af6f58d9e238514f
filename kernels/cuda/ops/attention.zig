const std = @import("std");
const types = @import("../../abi/types.zig");
const errors = @import("../../core/errors.zig");
const Context = @import("../context.zig").Context;
const decode = @import("attention_decode.zig");
const prefill = @import("attention_prefill.zig");

/// AttentionPortableParams in src/attention_portable.cu.
const PortableParams = extern struct {
    q: u64,
    q_sink: u64,
    out: u64,
    q_start: u64,
    kv_len: u64,
    block_table: u64,
    prefix_table: u64,
    prefix_len: u64,
    tail_start: u64,
    indices: u64,
    cache: types.KvCache,
    prefix_cache: types.KvCache,
    layer: u32,
    prefix_layer: u32,
    sinks: u32,
    window: u32,
    sequences: u32,
    heads: u32,
    max_pages: u32,
    max_prefix_pages: u32,
    index_stride: u32,
    scale_log2: f32,
};

comptime {
    std.debug.assert(@sizeOf(PortableParams) == 184);
}

/// Rows of one sequence up to which its bits are the same whatever the call: gamma + 1 at most.
pub const decode_rows = 17;

pub fn attention(ctx: *Context, desc: *const types.AttentionDesc) errors.Error!void {
    const rows: u64 = desc.q.shape[0];
    const sequences: u64 = desc.kv_len.shape[0];
    if (rows > decode_rows * sequences and prefill.takes(ctx, desc)) return prefill.prefill(ctx, desc);
    return if (decode.takes(ctx, desc)) decode.decode(ctx, desc) else portable(ctx, desc);
}

fn portable(ctx: *Context, desc: *const types.AttentionDesc) errors.Error!void {
    const params: PortableParams = .{
        .q = desc.q.data,
        .q_sink = desc.q_sink.data,
        .out = desc.out.data,
        .q_start = desc.q_start.data,
        .kv_len = desc.kv_len.data,
        .block_table = desc.block_table.data,
        .prefix_table = desc.prefix_table.data,
        .prefix_len = desc.prefix_len.data,
        .tail_start = desc.tail_start.data,
        .indices = desc.indices.data,
        .cache = desc.cache,
        .prefix_cache = desc.prefix_cache,
        .layer = desc.layer,
        .prefix_layer = desc.prefix_layer,
        .sinks = desc.sinks,
        .window = desc.window,
        .sequences = desc.kv_len.shape[0],
        .heads = desc.q.shape[1],
        .max_pages = desc.block_table.shape[1],
        .max_prefix_pages = desc.prefix_table.shape[1],
        .index_stride = desc.indices.shape[2],
        .scale_log2 = desc.scale * std.math.log2e,
    };
    return ctx.launch(
        .{ .module = .attention_portable, .name = "md_attention_portable" },
        .{ .grid = .{ desc.q.shape[0], desc.cache.kv_heads, 1 }, .block = 128 },
        &params,
    );
}

/// Bytes of workspace that this call needs at most, whatever the lengths are.
pub fn workspaceBytes(ctx: *const Context, desc: *const types.AttentionDesc) u64 {
    return if (decode.takes(ctx, desc)) decode.workspaceBytes(ctx, desc) else 64;
}
