//! Attention of few new rows a sequence over the paged cache, on Hopper: decoding, verifying and
//! drafting. The kernel is described in src/attention_decode.cu.
const std = @import("std");
const types = @import("../../abi/types.zig");
const errors = @import("../../core/errors.zig");
const plan = @import("../plan.zig");
const tiles = @import("../tiles.zig").attention_decode;
const context = @import("../context.zig");
const Context = context.Context;

/// AttentionDecodeParams in src/attention_decode.cuh.
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
    indices: u64,
    partials: u64,
    tickets: u64,
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
    slots: u32,
    scale_log2: f32,
    reserved: u32 = 0,
};

comptime {
    std.debug.assert(@sizeOf(Params) == 208);
}

/// Whether this kernel computes it: any form of attention, with the head dims it is compiled for.
pub fn takes(ctx: *const Context, desc: *const types.AttentionDesc) bool {
    return ctx.hopper() and shapeOf(desc) != null;
}

/// `desc` is one that the kernel takes.
pub fn decode(ctx: *Context, desc: *const types.AttentionDesc) errors.Error!void {
    if (desc.q.shape[0] == 0 or desc.kv_len.shape[0] == 0) return;
    const shape = shapeOf(desc).?;
    const fit = ctx.sm_count * shape.blocks_per_sm;
    const params: Params = .{
        .q = desc.q.data,
        .q_sink = if (desc.q_sink.data != 0) desc.q_sink.data else desc.q.data,
        .out = desc.out.data,
        .q_start = desc.q_start.data,
        .kv_len = desc.kv_len.data,
        .block_table = desc.block_table.data,
        .prefix_table = desc.prefix_table.data,
        .prefix_len = desc.prefix_len.data,
        .tail_start = desc.tail_start.data,
        .indices = desc.indices.data,
        .partials = desc.workspace.data,
        .tickets = ctx.tickets,
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
        .slots = slots(desc, shape, fit),
        .scale_log2 = desc.scale * std.math.log2e,
    };
    const config: context.LaunchConfig = .{
        .grid = .{ gridOf(desc, shape, fit), 1, 1 },
        .block = shape.threads(),
        .shared_bytes = shape.sharedBytes(desc.cache.head_dim),
    };
    switch (desc.cache.head_dim) {
        inline 64, 96, 128, 256 => |head_dim| inline for (comptime tiles.shapes(head_dim)) |each| {
            const name = comptime std.fmt.comptimePrint(
                "md_attention_decode_d{d}_r{d}",
                .{ head_dim, each.rows },
            );
            if (shape.rows == each.rows) return ctx.launch(
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
    return mostBytes(ctx.sm_count, desc);
}

/// No call with fewer rows, sequences or tokens needs more, though it may take another shape or
/// another grid: a workspace is planned for the largest calls only.
fn mostBytes(sm_count: u32, desc: *const types.AttentionDesc) u64 {
    const rows: u64 = desc.q.shape[0];
    if (rows == 0 or desc.kv_len.shape[0] == 0) return 64;
    var most_bytes: u64 = 0;
    for (shapesOf(desc.cache.head_dim).?) |shape| {
        const fit = sm_count * shape.blocks_per_sm;
        const partials = @as(u64, fit) * slots(desc, shape, fit);
        most_bytes = @max(most_bytes, partials * shape.partialBytes(desc.cache.head_dim));
        if (rows * group(desc) <= shape.rows) break;
    }
    return most_bytes;
}

/// Blocks of a call: by shapes alone, because a graph keeps it.
fn gridOf(desc: *const types.AttentionDesc, shape: tiles.Shape, fit: u32) u32 {
    const row_blocks = desc.kv_len.shape[0] * ceilDiv(meanRows(desc), shape.rows);
    const blocks = plan.grid(desc.cache.kv_heads * row_blocks, fit);
    // Two tickets a block.
    std.debug.assert(2 * blocks <= Context.ticket_count);
    return blocks;
}

/// Of one block, for any grid on so many blocks' room.
fn slots(desc: *const types.AttentionDesc, shape: tiles.Shape, fit: u32) u32 {
    const rows, const sequences = .{ desc.q.shape[0], desc.kv_len.shape[0] };
    const row_blocks = plan.rowBlocks(rows, group(desc), sequences, shape.rows);
    return plan.slots(most(desc, desc.cache.kv_heads * row_blocks), plan.leastGrid(fit));
}

fn group(desc: *const types.AttentionDesc) u32 {
    return desc.q.shape[1] / desc.cache.kv_heads;
}

/// Packed rows of a sequence on average: the call does not know each sequence's.
fn meanRows(desc: *const types.AttentionDesc) u64 {
    return ceilDiv(desc.q.shape[0], desc.kv_len.shape[0]) * group(desc);
}

/// The least that holds the rows of a sequence; null for a head dim that the kernel does not have.
fn shapeOf(desc: *const types.AttentionDesc) ?tiles.Shape {
    const shapes = shapesOf(desc.cache.head_dim) orelse return null;
    if (desc.kv_len.shape[0] == 0) return shapes[0];
    for (shapes) |shape| {
        if (meanRows(desc) <= shape.rows) return shape;
    }
    return shapes[shapes.len - 1];
}

fn shapesOf(any_head_dim: u32) ?[]const tiles.Shape {
    return switch (any_head_dim) {
        inline 64, 96, 128, 256 => |head_dim| tiles.shapes(head_dim),
        else => null,
    };
}

fn most(desc: *const types.AttentionDesc, jobs: u64) plan.Most {
    const page_tiles = desc.cache.page_size / plan.tile_tokens;
    const table = @as(u64, desc.block_table.shape[1]) * page_tiles;
    if (desc.window > 0) {
        // A sequence that is shorter than its view is read from the start.
        const view = @as(u64, desc.window) + desc.sinks + desc.q.shape[0];
        return .{
            .jobs = jobs,
            .main_tiles = @min(view / plan.tile_tokens + 2, table),
            .prefix_tiles = ceilDiv(desc.sinks, plan.tile_tokens),
        };
    }
    const listed = ceilDiv(desc.indices.shape[2], plan.tile_tokens);
    const prefix_page_tiles = desc.prefix_cache.page_size / plan.tile_tokens;
    const prefix = @as(u64, desc.prefix_table.shape[1]) * prefix_page_tiles;
    const prefix_tiles = if (desc.indices.data != 0) listed else prefix;
    return .{ .jobs = jobs, .main_tiles = table, .prefix_tiles = prefix_tiles };
}

fn ceilDiv(a: u64, b: u64) u64 {
    return std.math.divCeil(u64, a, b) catch unreachable;
}

const testing = std.testing;

test "shared memory lets the planned blocks of each shape share a multiprocessor" {
    for ([_]u32{ 64, 96, 128, 256 }) |head_dim| {
        for (shapesOf(head_dim).?) |shape| {
            const bytes = shape.sharedBytes(head_dim);
            try testing.expect(shape.blocks_per_sm * (bytes + 1024) <= 228 * 1024);
        }
    }
}

fn testDesc(head_dim: u32, rows: u32, sequences: u32, pages: u32) types.AttentionDesc {
    var desc = std.mem.zeroes(types.AttentionDesc);
    desc.cache = .{ .page_size = 64, .kv_heads = 8, .head_dim = head_dim };
    desc.q.shape[0..3].* = .{ rows, 32, head_dim };
    desc.kv_len.shape[0] = sequences;
    desc.block_table.shape[0..2].* = .{ sequences, pages };
    return desc;
}

test "a workspace that holds the largest call holds every smaller one" {
    var prng: std.Random.DefaultPrng = .init(5);
    const random = prng.random();
    for (0..2000) |_| {
        const head_dim = ([_]u32{ 64, 96, 128, 256 })[random.uintLessThan(usize, 4)];
        const sequences = random.intRangeAtMost(u32, 1, 80);
        const rows = random.intRangeAtMost(u32, 1, 600);
        const pages = @as(u32, 1) << random.uintAtMost(u5, 11);
        const bytes = mostBytes(132, &testDesc(head_dim, rows, sequences, pages));
        const small = testDesc(
            head_dim,
            random.intRangeAtMost(u32, 1, rows),
            random.intRangeAtMost(u32, 1, sequences),
            random.intRangeAtMost(u32, 1, pages),
        );
        try testing.expect(mostBytes(132, &small) <= bytes);
        const shape = shapeOf(&small).?;
        const fit = 132 * shape.blocks_per_sm;
        const used = @as(u64, gridOf(&small, shape, fit)) * slots(&small, shape, fit);
        try testing.expect(used * shape.partialBytes(head_dim) <= bytes);
    }
}
