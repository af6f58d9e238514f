//! What each op expects of its descriptor, checked once for all backends. A function per op, named
//! as in the manifest.
const std = @import("std");
const types = @import("../abi/types.zig");
const check = @import("../core/check.zig");
const errors = @import("../core/errors.zig");
const objects = @import("objects.zig");

const Error = errors.Error;
const Context = objects.Context;
const any = check.any;
const is = check.is;
const tensor = check.tensor;

/// SamplingParams as words.
const params_words = @sizeOf(types.SamplingParams) / 4;

pub fn embedding(_: *Context, d: *const types.EmbeddingDesc) Error!void {
    try tensor("table", &d.table, .bf16, &.{ any("v"), any("n") });
    try tensor("ids", &d.ids, .i32, &.{ any("b"), any("r") });
    const rows = @as(u64, d.ids.shape[0]) * d.ids.shape[1];
    try tensor("out", &d.out, .bf16, &.{ is(rows), is(d.table.shape[1]) });
    try stride("ids_stride", d.ids_stride, d.ids.shape[1]);
    try check.reserved(d.reserved);
}

pub fn rms_norm(_: *Context, d: *const types.RmsNormDesc) Error!void {
    try tensor("x", &d.x, .bf16, &.{ any("rows"), any("n") });
    const same = [_]check.Dim{ is(d.x.shape[0]), is(d.x.shape[1]) };
    if (check.given(d.delta)) try tensor("delta", &d.delta, .bf16, &same);
    try tensor("weight", &d.weight, .bf16, same[1..]);
    try tensor("out", &d.out, .bf16, &same);
    try check.finite("eps", d.eps);
    try check.reserved(d.reserved);
}

pub fn linear(context: *Context, d: *const types.LinearDesc) Error!void {
    try weight(context, &d.weight);
    try tensor("x", &d.x, .bf16, &.{ any("rows"), is(d.weight.k) });
    const n = switch (try objects.enumValue(
        types.Epilogue,
        "epilogue",
        objects.rawEnum(&d.epilogue),
    )) {
        .none => d.weight.n,
        .silu_mul => if (d.weight.n % 2 == 0) d.weight.n / 2 else {
            return errors.fail(
                error.InvalidArgument,
                "expected an even n of weight with silu_mul, got {d}",
                .{d.weight.n},
            );
        },
    };
    const shape = [_]check.Dim{ is(d.x.shape[0]), is(n) };
    if (check.given(d.bias)) try tensor("bias", &d.bias, .bf16, &.{is(d.weight.n)});
    if (check.given(d.residual)) try tensor("residual", &d.residual, .bf16, &shape);
    if (check.rawDtype(&d.out) == @intFromEnum(types.DType.f32)) {
        try tensor("out", &d.out, .f32, &shape);
    } else {
        try tensor("out", &d.out, .bf16, &shape);
    }
    try check.reserved(d.reserved);
}

/// `source.data` is final here: ops.zig has put the mapped file's address there.
pub fn weight_pack(context: *Context, d: *const types.PackDesc) Error!void {
    try weight(context, &d.weight);
    const dims = [_]check.Dim{ any("rows"), is(d.weight.k) };
    var source = d.source;
    // Files do not align their tensors; the kernel does not need it.
    if (d.file != 0) source.data = std.mem.alignForward(u64, source.data, 4);
    if (check.rawDtype(&source) == @intFromEnum(types.DType.f32)) {
        try tensor("source", &source, .f32, &dims);
    } else {
        try tensor("source", &source, .bf16, &dims);
    }
    if (@as(u64, d.row_offset) + source.shape[0] > d.weight.n) {
        return errors.fail(error.InvalidArgument, "expected rows below {d}, got rows {d} to {d}", .{
            d.weight.n, d.row_offset, @as(u64, d.row_offset) + source.shape[0] - 1,
        });
    }
}

pub fn rope_table(_: *Context, d: *const types.RopeTableDesc) Error!void {
    try tensor("positions", &d.positions, .i32, &.{any("rows")});
    try tensor("inv_freq", &d.inv_freq, .f32, &.{any("d / 2")});
    const d_head = 2 * @as(u64, d.inv_freq.shape[0]);
    try tensor("out", &d.out, .f32, &.{ is(d.positions.shape[0]), is(d_head) });
    try check.finite("scale", d.scale);
}

pub fn rope_append(_: *Context, d: *const types.RopeAppendDesc) Error!void {
    try check.kvCache("cache", &d.cache, d.layer);
    const d_head = d.cache.head_dim;
    try tensor("q", &d.q, .bf16, &.{ any("rows"), any("h"), is(d_head) });
    const rows = d.q.shape[0];
    const heads = d.q.shape[1];
    try check.headGroups(heads, d.cache.kv_heads);
    const width = (@as(u64, heads) + 2 * @as(u64, d.cache.kv_heads)) * d_head;
    try tensor("qkv", &d.qkv, .bf16, &.{ is(rows), is(width) });
    try tensor("rope", &d.rope, .f32, &.{ is(rows), is(d_head) });
    if (check.given(d.rope_sink) or check.given(d.q_sink)) {
        try tensor("rope_sink", &d.rope_sink, .f32, &.{ is(rows), is(d_head) });
        try tensor("q_sink", &d.q_sink, .bf16, &.{ is(rows), is(heads), is(d_head) });
    }
    try tensor("row_seq", &d.row_seq, .i32, &.{is(rows)});
    try tensor("positions", &d.positions, .i32, &.{is(rows)});
    try tensor("block_table", &d.block_table, .i32, &.{ any("b"), any("max_pages") });
    try check.reserved(d.reserved);
}

pub fn attention(context: *Context, d: *const types.AttentionDesc) Error!void {
    try attentionShapes(d);
    const needed = context.backend.attention_workspace(context.state, d);
    try tensor("workspace", &d.workspace, .u8, &.{any("bytes")});
    try check.data("workspace", d.workspace.data, 64);
    if (d.workspace.shape[0] < needed) {
        return errors.fail(
            error.InvalidArgument,
            "expected a workspace of at least {d} bytes, got {d}",
            .{ needed, d.workspace.shape[0] },
        );
    }
}

/// All but the workspace.
pub fn attentionShapes(d: *const types.AttentionDesc) Error!void {
    try check.kvCache("cache", &d.cache, d.layer);
    const d_head = d.cache.head_dim;
    try tensor("q", &d.q, .bf16, &.{ any("rows"), any("h"), is(d_head) });
    const same = [_]check.Dim{ is(d.q.shape[0]), is(d.q.shape[1]), is(d_head) };
    try check.headGroups(d.q.shape[1], d.cache.kv_heads);
    try tensor("out", &d.out, .bf16, &same);
    try tensor("kv_len", &d.kv_len, .i32, &.{any("b")});
    const b = d.kv_len.shape[0];
    try tensor("q_start", &d.q_start, .i32, &.{is(@as(u64, b) + 1)});
    try tensor("block_table", &d.block_table, .i32, &.{ is(b), any("max_pages") });
    try check.finite("scale", d.scale);
    try check.reserved(d.reserved);
    try attentionPrefix(d, b);
    if (d.window == 0) {
        try check.absent("q_sink", d.q_sink, "without a window");
        if (d.sinks != 0) return errors.fail(
            error.InvalidArgument,
            "expected sinks of 0 without a window, got {d}",
            .{d.sinks},
        );
    } else if (check.given(d.q_sink)) {
        try tensor("q_sink", &d.q_sink, .bf16, &same);
    }
}

/// A window, a prefix cache and an index list are three ways to read less: at most one of them.
fn attentionPrefix(d: *const types.AttentionDesc, b: u32) Error!void {
    const cached = check.given(d.prefix_cache);
    const listed = check.given(d.indices);
    if (!cached) try check.absent("prefix_table", d.prefix_table, "without a prefix_cache");
    if (!cached and !listed) {
        try check.absent("prefix_len", d.prefix_len, "without a prefix_cache or indices");
        try check.absent("tail_start", d.tail_start, "without a prefix_cache or indices");
        return;
    }
    if (cached) try check.absent("indices", d.indices, "beside a prefix_cache");
    if (d.window != 0) return errors.fail(
        error.InvalidArgument,
        "expected a window of 0 beside a prefix_cache or indices, got {d}",
        .{d.window},
    );
    try tensor("prefix_len", &d.prefix_len, .i32, &.{is(b)});
    try tensor("tail_start", &d.tail_start, .i32, &.{is(b)});
    if (listed) return tensor(
        "indices",
        &d.indices,
        .i32,
        &.{ is(b), is(d.cache.kv_heads), any("n") },
    );
    try tensor("prefix_table", &d.prefix_table, .i32, &.{ is(b), any("max_prefix_pages") });
    try check.kvCache("prefix_cache", &d.prefix_cache, d.prefix_layer);
    try sameHeads("prefix_cache", &d.prefix_cache, &d.cache);
}

pub fn silu_mul(_: *Context, d: *const types.SiluMulDesc) Error!void {
    try tensor("out", &d.out, .bf16, &.{ any("rows"), any("n") });
    try tensor(
        "gate_up",
        &d.gate_up,
        .bf16,
        &.{ is(d.out.shape[0]), is(2 * @as(u64, d.out.shape[1])) },
    );
}

pub fn add(_: *Context, d: *const types.AddDesc) Error!void {
    var dims: [4]check.Dim = undefined;
    const shape = try shapeOf("a", &d.a, &dims);
    try tensor("a", &d.a, .bf16, shape);
    try tensor("b", &d.b, .bf16, shape);
    try tensor("out", &d.out, .bf16, shape);
}

pub fn cast(_: *Context, d: *const types.CastDesc) Error!void {
    var dims: [4]check.Dim = undefined;
    const shape = try shapeOf("source", &d.source, &dims);
    if (check.rawDtype(&d.source) == @intFromEnum(types.DType.f32)) {
        try tensor("source", &d.source, .f32, shape);
        try tensor("out", &d.out, .bf16, shape);
    } else {
        try tensor("source", &d.source, .bf16, shape);
        try tensor("out", &d.out, .f32, shape);
    }
}

pub fn copy(_: *Context, d: *const types.CopyDesc) Error!void {
    try check.data("source", d.source, 1);
    try check.data("out", d.out, 1);
    if (d.count > 1 and d.out_stride < d.bytes) {
        return errors.fail(
            error.InvalidArgument,
            "expected an out_stride of at least {d} bytes, got {d}",
            .{ d.bytes, d.out_stride },
        );
    }
    try check.reserved(d.reserved);
}

pub fn positions(_: *Context, d: *const types.PositionsDesc) Error!void {
    try tensor("lens", &d.lens, .i32, &.{any("b")});
    const b = d.lens.shape[0];
    try tensor("positions", &d.positions, .i32, &.{any("b * r")});
    if (d.positions.shape[0] % b != 0) {
        return errors.fail(
            error.InvalidArgument,
            "expected positions of a multiple of {d}, got {d}",
            .{ b, d.positions.shape[0] },
        );
    }
    try tensor("kv_len", &d.kv_len, .i32, &.{is(b)});
    try check.reserved(d.reserved);
}

pub fn keep_queries(_: *Context, d: *const types.KeepQueriesDesc) Error!void {
    try tensor("q", &d.q, .bf16, &.{ any("rows"), any("h"), any("d") });
    try tensor("row_seq", &d.row_seq, .i32, &.{is(d.q.shape[0])});
    try tensor("positions", &d.positions, .i32, &.{is(d.q.shape[0])});
    try tensor(
        "out",
        &d.out,
        .bf16,
        &.{ any("b"), any("ring"), is(d.q.shape[1]), is(d.q.shape[2]) },
    );
}

pub fn snap_score(_: *Context, d: *const types.SnapScoreDesc) Error!void {
    try check.kvCache("cache", &d.cache, d.layer);
    try tensor(
        "queries",
        &d.queries,
        .bf16,
        &.{ any("b"), any("ring"), any("h"), is(d.cache.head_dim) },
    );
    const b = d.queries.shape[0];
    try check.headGroups(d.queries.shape[2], d.cache.kv_heads);
    try tensor("lens", &d.lens, .i32, &.{is(b)});
    try tensor("block_table", &d.block_table, .i32, &.{ is(b), any("max_pages") });
    try tensor("scores", &d.scores, .f32, &.{ is(b), is(d.cache.kv_heads), any("max_tokens") });
    try check.between("window", d.window, 1, d.queries.shape[1]);
    try check.finite("scale", d.scale);
    try check.reserved(d.reserved);
}

pub fn snap_select(_: *Context, d: *const types.SnapSelectDesc) Error!void {
    try tensor("scores", &d.scores, .f32, &.{ any("b"), any("h_kv"), any("max_tokens") });
    const b = d.scores.shape[0];
    const kv_heads = d.scores.shape[1];
    try tensor("pooled", &d.pooled, .f32, &.{ is(b), is(kv_heads), is(d.scores.shape[2]) });
    try tensor("lens", &d.lens, .i32, &.{is(b)});
    try tensor("prefix_len", &d.prefix_len, .i32, &.{is(b)});
    try tensor("tail_start", &d.tail_start, .i32, &.{is(b)});
    try tensor("indices", &d.indices, .i32, &.{ is(b), is(kv_heads), any("n") });
    try check.between("window", d.window, 1, std.math.maxInt(i32));
    try check.between(
        "budget",
        d.budget,
        @as(u64, d.window) + 1,
        @as(u64, d.window) + d.indices.shape[2],
    );
    try check.between("kernel", d.kernel, 1, 1 << 10);
    if (d.kernel % 2 == 0) return errors.fail(
        error.InvalidArgument,
        "expected an odd kernel, got {d}",
        .{d.kernel},
    );
    _ = try objects.enumValue(types.Pooling, "pooling", objects.rawEnum(&d.pooling));
}

pub fn gather_kv(_: *Context, d: *const types.GatherKvDesc) Error!void {
    try check.kvCache("source", &d.source, d.source_layer);
    try check.kvCache("out", &d.out, d.out_layer);
    try sameHeads("out", &d.out, &d.source);
    try tensor("indices", &d.indices, .i32, &.{ any("b"), is(d.source.kv_heads), any("n") });
    const b = d.indices.shape[0];
    try tensor("prefix_len", &d.prefix_len, .i32, &.{is(b)});
    try tensor("source_table", &d.source_table, .i32, &.{ is(b), any("max_pages") });
    try tensor("out_table", &d.out_table, .i32, &.{ is(b), any("max_pages") });
}

/// What a backend's filters hold at once (kernels/cpu/ops/filters.zig).
const max_vocabulary = 1 << 18;

pub fn sample(_: *Context, d: *const types.SampleDesc) Error!void {
    try tensor("out", &d.out, .i32, &.{ any("b"), any("r") });
    const b = d.out.shape[0];
    const r = d.out.shape[1];
    const rows = @as(u64, b) * r;
    try tensor("logits", &d.logits, .f32, &.{ is(rows), any("v") });
    try check.between("v", d.logits.shape[1], 1, max_vocabulary);
    try tensor("params", &d.params, .u32, &.{ is(b), is(params_words) });
    try tensor("positions", &d.positions, .i32, &.{is(rows)});
    try stride("out_stride", d.out_stride, r);
    if (check.given(d.probs)) {
        try tensor("probs", &d.probs, .f32, &.{ is(b), is(r), is(d.logits.shape[1]) });
        try stride("probs_stride", d.probs_stride, r);
    }
    _ = try objects.enumValue(types.NoiseStream, "stream", objects.rawEnum(&d.stream));
    try check.reserved(d.reserved);
}

pub fn accept(_: *Context, d: *const types.AcceptDesc) Error!void {
    try tensor("out", &d.out, .i32, &.{ any("b"), any("g + 1") });
    const b = d.out.shape[0];
    const g = d.out.shape[1] - 1;
    try tensor("chain", &d.chain, .i32, &.{ is(b), is(@as(u64, g) + 2) });
    switch (try objects.enumValue(types.AcceptRule, "rule", objects.rawEnum(&d.rule))) {
        .match => try tensor(
            "target_tokens",
            &d.target_tokens,
            .i32,
            &.{ is(b), is(@as(u64, g) + 1) },
        ),
        .rejection => {
            const rows = @as(u64, b) * (@as(u64, g) + 1);
            try tensor("target_logits", &d.target_logits, .f32, &.{ is(rows), any("v") });
            try check.between("v", d.target_logits.shape[1], 1, max_vocabulary);
            if (g > 0) try tensor(
                "draft_probs",
                &d.draft_probs,
                .f32,
                &.{ is(b), is(g), is(d.target_logits.shape[1]) },
            );
        },
    }
    try tensor("params", &d.params, .u32, &.{ is(b), is(params_words) });
    try tensor("active", &d.active, .i32, &.{is(b)});
    try tensor("lens", &d.lens, .i32, &.{is(b)});
    try tensor("count", &d.count, .i32, &.{is(b)});
    try check.reserved(d.reserved);
}

pub fn publish(_: *Context, d: *const types.PublishDesc) Error!void {
    try tensor("record", &d.record, .u8, &.{any("bytes")});
    try tensor("ring", &d.ring, .u8, &.{ any("slots"), is(d.record.shape[0]) });
    try tensor("counter", &d.counter, .u32, &.{is(1)});
}

fn weight(context: *Context, w: *const types.Weight) Error!void {
    _ = try objects.enumValue(types.WeightFormat, "weight.format", objects.rawEnum(&w.format));
    try check.reserved(w.reserved);
    try check.between("weight.n", w.n, 1, std.math.maxInt(i32));
    try check.between("weight.k", w.k, 1, std.math.maxInt(i32));
    try check.data("weight", w.data, 64);
    const needed = context.backend.weight_bytes(context.state, w.n, w.k);
    if (w.bytes < needed) {
        return errors.fail(
            error.InvalidArgument,
            "expected a weight ({d}, {d}) of at least {d} bytes, got {d}",
            .{ w.n, w.k, needed, w.bytes },
        );
    }
}

fn sameHeads(
    comptime name: []const u8,
    cache: *const types.KvCache,
    like: *const types.KvCache,
) Error!void {
    if (cache.kv_heads == like.kv_heads and cache.head_dim == like.head_dim) return;
    return errors.fail(error.InvalidArgument, "expected {s} of {d} KV heads of {d}, got {d} of {d}", .{
        name, like.kv_heads, like.head_dim, cache.kv_heads, cache.head_dim,
    });
}

fn stride(comptime name: []const u8, value: u32, low: u32) Error!void {
    if (value < low) return errors.fail(
        error.InvalidArgument,
        "expected {s} of at least {d}, got {d}",
        .{ name, low, value },
    );
}

/// A tensor's own shape, any rank from 1 on, for comparing others with it.
fn shapeOf(
    comptime name: []const u8,
    t: *const types.Tensor,
    dims: *[4]check.Dim,
) Error![]const check.Dim {
    if (t.rank == 0 or t.rank > 4) return errors.fail(
        error.InvalidArgument,
        "expected {s} of rank 1 to 4, got {d}",
        .{ name, t.rank },
    );
    for (dims[0..t.rank], t.shape[0..t.rank]) |*dim, extent| dim.* = if (extent == 0) any(
        "at least 1",
    ) else is(extent);
    return dims[0..t.rank];
}
