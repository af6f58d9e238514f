//! Attention of few new rows a sequence over the paged cache, on Hopper: decoding, verifying and
//! drafting. The kernel is described in src/attention_decode.cu.
const std = @import("std");
const types = @import("../../abi/types.zig");
const errors = @import("../../core/errors.zig");
const plan = @import("../plan.zig");
const tiles = @import("../tiles.zig").attention_decode;
const context = @import("../context.zig");
const Context = context.Context;

/// AttentionDecodeParams in src/attention_decode_work.cuh.
const Params = extern struct {
    q: u64,
    q_sink: u64,
    out: u64,
    q_start: u64,
    kv_len: u64,
    block_table: u64,
    prefix_table: u64,
    prefix_len: u64,
    tail_start: u64,
    partials: u64,
    tickets: u64,
    cache: types.KvCache,
    prefix_cache: types.KvCache,
    layer: u32,
    prefix_layer: u32,
    sinks: u32,
    window: u32,
    sequences: u32,
    group: u32,
    max_pages: u32,
    max_prefix_pages: u32,
    slots: u32,
    scale_log2: f32,
};

comptime {
    std.debug.assert(@sizeOf(Params) == 192);
}

/// Whether this kernel computes it. The tickets are enough for some 2000 sequences of 8 KV heads.
pub fn takes(ctx: *const Context, desc: *const types.AttentionDesc) bool {
    const head_dim = desc.cache.head_dim;
    const fits = (head_dim == 64 or head_dim == 128) and group(desc) <= 8 and desc.scale > 0;
    return ctx.hopper() and fits and desc.indices.data == 0 and
        items(desc, tiles.shapes[tiles.shapes.len - 1]) <= Context.ticket_count;
}

/// `desc` is one that the kernel takes.
pub fn decode(ctx: *Context, desc: *const types.AttentionDesc) errors.Error!void {
    const sequences = desc.kv_len.shape[0];
    if (desc.q.shape[0] == 0 or sequences == 0) return;
    const index = shapeIndex(desc);
    const shape = tiles.shapes[index];
    const blocks = ctx.sm_count * shape.blocks_per_sm;
    const params: Params = .{
        .q = desc.q.data,
        .q_sink = desc.q_sink.data,
        .out = desc.out.data,
        .q_start = desc.q_start.data,
        .kv_len = desc.kv_len.data,
        .block_table = desc.block_table.data,
        .prefix_table = desc.prefix_table.data,
        .prefix_len = desc.prefix_len.data,
        .tail_start = desc.tail_start.data,
        .partials = desc.workspace.data,
        .tickets = ctx.tickets,
        .cache = desc.cache,
        .prefix_cache = desc.prefix_cache,
        .layer = desc.layer,
        .prefix_layer = desc.prefix_layer,
        .sinks = desc.sinks,
        .window = desc.window,
        .sequences = sequences,
        .group = group(desc),
        .max_pages = desc.block_table.shape[1],
        .max_prefix_pages = desc.prefix_table.shape[1],
        .slots = slots(desc, shape, blocks),
        .scale_log2 = desc.scale * std.math.log2e,
    };
    const config: context.LaunchConfig = .{
        .grid = .{ blocks, 1, 1 },
        .block = shape.threads(),
        .shared_bytes = shape.sharedBytes(),
    };
    switch (desc.cache.head_dim) {
        inline 64, 128 => |head_dim| inline for (tiles.shapes, 0..) |each, i| {
            const name = comptime std.fmt.comptimePrint(
                "md_attention_decode_d{d}_r{d}",
                .{ head_dim, each.rows },
            );
            if (i == index) return ctx.launch(
                .{ .module = .attention_decode, .name = name },
                config,
                &params,
            );
        },
        else => {},
    }
    unreachable;
}

/// Bytes of workspace that this call needs at most, whatever the lengths are.
pub fn workspaceBytes(ctx: *const Context, desc: *const types.AttentionDesc) u64 {
    if (desc.q.shape[0] == 0 or desc.kv_len.shape[0] == 0) return 64;
    const shape = tiles.shapes[shapeIndex(desc)];
    const blocks = ctx.sm_count * shape.blocks_per_sm;
    return @as(u64, blocks) * slots(desc, shape, blocks) * shape.partialBytes(desc.cache.head_dim);
}

fn group(desc: *const types.AttentionDesc) u32 {
    return desc.q.shape[1] / desc.cache.kv_heads;
}

/// By the mean number of rows: the call does not know each sequence's.
fn shapeIndex(desc: *const types.AttentionDesc) usize {
    const rows: u64 = desc.q.shape[0];
    const mean = std.math.divCeil(u64, rows, desc.kv_len.shape[0]) catch unreachable;
    for (tiles.shapes, 0..) |shape, i| {
        const fits = mean * group(desc) <= shape.rows;
        if (fits and items(desc, shape) <= Context.ticket_count) return i;
    }
    return tiles.shapes.len - 1;
}

fn items(desc: *const types.AttentionDesc, shape: tiles.Shape) u64 {
    const rows = desc.q.shape[0];
    const row_blocks = plan.rowBlocks(rows, group(desc), desc.kv_len.shape[0], shape.rows);
    return desc.cache.kv_heads * row_blocks;
}

fn slots(desc: *const types.AttentionDesc, shape: tiles.Shape, blocks: u32) u32 {
    const main = desc.block_table.shape[1] * @as(u64, desc.cache.page_size);
    const prefix = desc.prefix_table.shape[1] * @as(u64, desc.prefix_cache.page_size);
    var chunks: u64 = 0;
    for ([_]u64{ main, prefix, desc.sinks }) |tokens| {
        chunks += std.math.divCeil(u64, tokens, plan.chunk_tokens) catch unreachable;
    }
    return plan.slots(items(desc, shape) * chunks, chunks, blocks);
}
