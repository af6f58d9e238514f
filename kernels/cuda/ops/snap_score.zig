const std = @import("std");
const types = @import("../../abi/types.zig");
const errors = @import("../../core/errors.zig");
const check = @import("../../core/check.zig");
const context_mod = @import("../context.zig");

const Context = context_mod.Context;

/// SnapScoreParams in src/snapkv.cu.
const Params = extern struct {
    cache: types.KvCache,
    queries: u64,
    lens: u64,
    block_table: u64,
    scores: u64,
    partials: u64,
    normalisers: u64,
    ring: u32,
    heads: u32,
    max_pages: u32,
    max_tokens: u32,
    layer: u32,
    window: u32,
    chunks: u32,
    scale: f32,
    begin: u32,
    reserved: u32 = 0,
};

comptime {
    std.debug.assert(@sizeOf(Params) == 120);
}

const threads = 128;
const chunk_tokens = 1024;
const tile_tokens = 64;
const stages = 3;

/// A query row's maximum and sum in a chunk, and its normaliser.
const partial_bytes = 8;
const normaliser_bytes = 4;

/// Each row's maximum and sum by chunk, those merged, and the weights: as many sequences at a time
/// as the scratch holds the chunks of.
pub fn snap_score(ctx: *Context, desc: *const types.SnapScoreDesc) errors.Error!void {
    const b, const ring, const heads, const d = desc.queries.shape;
    try check.data("queries", desc.queries.data, 4);
    const cache = desc.cache;
    const max_pages = desc.block_table.shape[1];
    const max_tokens = desc.scores.shape[2];
    const tokens = @min(
        @as(u64, max_pages) * cache.page_size,
        @as(u64, max_tokens) + desc.window,
    );
    const chunks: u32 = @intCast((tokens + chunk_tokens - 1) / chunk_tokens);
    const rows = @as(u64, desc.window) * heads;
    const most: u64 = Context.scratch_bytes / (rows * (chunks * partial_bytes + normaliser_bytes));
    if (most == 0) return errors.fail(
        error.Unsupported,
        "expected a window and a sequence whose maxima take at most {d} bytes, " ++
            "got {d} queries of {d} heads over {d} tokens",
        .{ Context.scratch_bytes, desc.window, heads, tokens },
    );
    const at_once: u32 = @intCast(@min(most, b));
    var params: Params = .{
        .cache = cache,
        .queries = desc.queries.data,
        .lens = desc.lens.data,
        .block_table = desc.block_table.data,
        .scores = desc.scores.data,
        .partials = ctx.scratch,
        .normalisers = ctx.scratch + at_once * rows * chunks * partial_bytes,
        .ring = ring,
        .heads = heads,
        .max_pages = max_pages,
        .max_tokens = max_tokens,
        .layer = desc.layer,
        .window = desc.window,
        .chunks = chunks,
        .scale = desc.scale,
        .begin = 0,
    };
    while (params.begin < b) : (params.begin += at_once) {
        const sequences = @min(at_once, b - params.begin);
        switch (d) {
            inline 64, 96, 128, 256 => |n| try score(n, ctx, sequences, &params),
            else => unreachable,
        }
    }
}

fn score(comptime d: u32, ctx: *Context, sequences: u32, params: *const Params) errors.Error!void {
    const name = std.fmt.comptimePrint("{d}", .{d});
    const kv_heads = params.cache.kv_heads;
    const pass: context_mod.LaunchConfig = .{
        .grid = .{ params.chunks, kv_heads, sequences },
        .block = threads,
        .shared_bytes = stages * tile_tokens * d * 2,
    };
    try ctx.launch(.{ .module = .snapkv, .name = "md_snap_score_normalise_" ++ name }, pass, params);
    try ctx.launch(
        .{ .module = .snapkv, .name = "md_snap_score_merge" },
        .{ .grid = .{ kv_heads, sequences, 1 }, .block = threads },
        params,
    );
    try ctx.launch(.{ .module = .snapkv, .name = "md_snap_score_sum_" ++ name }, pass, params);
}
