//! The ops that fill and select the cache: rope_append, keep_queries, snap_score, snap_select,
//! gather_kv.
const std = @import("std");
const types = @import("../abi/types.zig");
const simd = @import("../cpu/simd.zig");
const testing = @import("../cpu/testing.zig");
const reference = @import("reference_attention.zig");
const rope_append = @import("../cpu/ops/rope_append.zig").rope_append;
const keep_queries = @import("../cpu/ops/keep_queries.zig").keep_queries;
const snap_score = @import("../cpu/ops/snap_score.zig").snap_score;
const snap_select = @import("../cpu/ops/snap_select.zig").snap_select;
const gather_kv = @import("../cpu/ops/gather_kv.zig").gather_kv;

const allocator = std.testing.allocator;

const Append = struct {
    cache: reference.Cache,
    qkv: []u16,
    rope: []f32,
    rope_sink: []f32,
    heads: u32,

    /// Appends rows `picked` of the inputs, row i at positions[i] of sequence row_seq[i]; returns q
    /// then q_sink, which the caller frees.
    fn run(self: *const Append, row_seq: []i32, positions: []i32, picked: []const usize) ![]u16 {
        const kv = self.cache.kv;
        const rows: u32 = @intCast(picked.len);
        const width = (self.heads + 2 * kv.kv_heads) * kv.head_dim;
        const qkv = try allocator.alloc(u16, rows * width);
        defer allocator.free(qkv);
        const rope = try allocator.alloc(f32, 2 * rows * kv.head_dim);
        defer allocator.free(rope);
        const rope_sink = rope[rows * kv.head_dim ..];
        for (picked, 0..) |from, to| {
            @memcpy(qkv[to * width ..][0..width], self.qkv[from * width ..][0..width]);
            const d = kv.head_dim;
            @memcpy(rope[to * d ..][0..d], self.rope[from * d ..][0..d]);
            @memcpy(rope_sink[to * d ..][0..d], self.rope_sink[from * d ..][0..d]);
        }
        const elements = rows * self.heads * kv.head_dim;
        const q = try allocator.alloc(u16, 2 * elements);
        @memset(q, 0);
        const b: u32 = @intCast(self.cache.table.len / self.cache.max_pages);
        const q_shape = [_]u32{ rows, self.heads, kv.head_dim };
        const desc: types.RopeAppendDesc = .{
            .qkv = testing.tensor(qkv, &.{ rows, width }),
            .rope = testing.tensor(rope, &.{ rows, kv.head_dim }),
            .rope_sink = testing.tensor(rope_sink, &.{ rows, kv.head_dim }),
            .q = testing.tensor(q, &q_shape),
            .q_sink = testing.tensor(q[elements..], &q_shape),
            .row_seq = testing.tensor(row_seq, &.{rows}),
            .positions = testing.tensor(positions, &.{rows}),
            .block_table = testing.tensor(self.cache.table, &.{ b, self.cache.max_pages }),
            .cache = kv,
            .layer = 1,
        };
        try testing.run(rope_append, &desc, 2);
        return q;
    }
};

fn rotated(x: []const u16, rope: []const f32, i: usize) f64 {
    const half = x.len / 2;
    const cos: f64 = rope[i % half];
    const sin: f64 = rope[half + i % half];
    const self = reference.f64FromBf16(x[i]);
    const other = reference.f64FromBf16(x[(i + half) % x.len]);
    return if (i < half) self * cos - other * sin else self * cos + other * sin;
}

fn expectNear(want: f64, got: u16) !void {
    try testing.expectClose(&.{want}, @as([]const u16, &.{got}), 0.005, 0.005);
}

test "rope_append rotates q and k, and puts k and v at their positions, whatever the batch" {
    var prng = std.Random.DefaultPrng.init(3);
    const random = prng.random();
    for ([_]u32{ 64, 96, 128, 256 }) |d| for ([_]u32{ 1, 4 }) |group| {
        const cache = try reference.Cache.init(random, .{
            .b = 3,
            .max_tokens = 300,
            .kv_heads = 2,
            .d = d,
            .page_size = 128,
        });
        defer cache.deinit();
        var row_seq = [_]i32{ 0, 0, 0, 2, -1, 1, 1 };
        var positions = [_]i32{ 126, 127, 128, 299, 5, 0, 1 };
        const heads = 2 * group;
        const width = (heads + 4) * d;
        const rows = row_seq.len;
        const append: Append = .{
            .cache = cache,
            .qkv = try testing.randomBf16(random, rows * width, 1),
            .rope = try allocator.alloc(f32, rows * d),
            .rope_sink = try allocator.alloc(f32, rows * d),
            .heads = heads,
        };
        defer allocator.free(append.qkv);
        defer allocator.free(append.rope);
        defer allocator.free(append.rope_sink);
        for (append.rope, append.rope_sink) |*x, *y| {
            x.* = random.float(f32) * 2 - 1;
            y.* = random.float(f32) * 2 - 1;
        }
        const untouched = cache.k(1, 0, 125, 1, 3).*;
        const q = try append.run(&row_seq, &positions, &.{ 0, 1, 2, 3, 4, 5, 6 });
        defer allocator.free(q);
        try std.testing.expectEqual(untouched, cache.k(1, 0, 125, 1, 3).*);
        for (row_seq, positions, 0..) |sequence, position, row| {
            if (sequence < 0) continue;
            const x = append.qkv[row * width ..][0..width];
            const rope = append.rope[row * d ..][0..d];
            const rope_sink = append.rope_sink[row * d ..][0..d];
            for (0..heads) |h| for (0..d) |i| {
                const at = (row * heads + h) * d + i;
                try expectNear(rotated(x[h * d ..][0..d], rope, i), q[at]);
                try expectNear(rotated(x[h * d ..][0..d], rope_sink, i), q[q.len / 2 + at]);
            };
            for (0..2) |h| for (0..d) |i| {
                const s: usize = @intCast(sequence);
                const token: u32 = @intCast(position);
                const k = cache.k(1, s, token, @intCast(h), @intCast(i)).*;
                const v = cache.v(1, s, token, @intCast(h), @intCast(i)).*;
                try expectNear(rotated(x[(heads + h) * d ..][0..d], rope, i), k);
                try std.testing.expectEqual(x[(heads + 2 + h) * d + i], v);
            };
        }
        const before = try allocator.dupe(u16, cache.data);
        defer allocator.free(before);
        for (0..rows) |row| {
            const alone = try append.run(row_seq[row..][0..1], positions[row..][0..1], &.{row});
            defer allocator.free(alone);
            const together = q[row * heads * d ..][0 .. heads * d];
            try std.testing.expectEqualSlices(u16, together, alone[0 .. heads * d]);
        }
        try std.testing.expectEqualSlices(u16, before, cache.data);
    };
}

test "keep_queries keeps the last positions of each sequence" {
    const ring = 5;
    const width = 6;
    var q: [9 * width]u16 = undefined;
    for (&q, 0..) |*x, i| x.* = @intCast(i);
    var row_seq = [_]i32{ 1, 1, 1, 1, 1, 1, 1, -1, 0 };
    var positions = [_]i32{ 8, 9, 10, 11, 12, 13, 14, 3, 7 };
    var out: [2 * ring * width]u16 = @splat(9999);
    const desc: types.KeepQueriesDesc = .{
        .q = testing.tensor(@as([]u16, &q), &.{ 9, 2, 3 }),
        .row_seq = testing.tensor(@as([]i32, &row_seq), &.{9}),
        .positions = testing.tensor(@as([]i32, &positions), &.{9}),
        .out = testing.tensor(@as([]u16, &out), &.{ 2, ring, 2, 3 }),
    };
    try testing.run(keep_queries, &desc, 2);
    for (2..7) |row| {
        const slot = ring + @as(usize, @intCast(positions[row])) % ring;
        const kept = out[slot * width ..][0..width];
        try std.testing.expectEqualSlices(u16, q[row * width ..][0..width], kept);
    }
    try std.testing.expectEqualSlices(u16, q[8 * width ..], out[2 * width ..][0..width]);
    for (out[0 .. 2 * width]) |x| try std.testing.expectEqual(@as(u16, 9999), x);
}

fn checkScores(d: u32, kv_heads: u32, group: u32, window: u32, lens: []const i32, seed: u64) !void {
    var prng = std.Random.DefaultPrng.init(seed);
    const random = prng.random();
    const b: u32 = @intCast(lens.len);
    const max_tokens: u32 = @intCast(@max(std.mem.max(i32, lens), 1));
    const ring = window + 3;
    const heads = kv_heads * group;
    const scale = 0.2;
    const cache = try reference.Cache.init(random, .{
        .b = b,
        .max_tokens = max_tokens,
        .kv_heads = kv_heads,
        .d = d,
    });
    defer cache.deinit();
    const queries = try testing.randomBf16(random, b * ring * heads * d, 1);
    defer allocator.free(queries);
    const scores = try allocator.alloc(f32, b * kv_heads * max_tokens);
    defer allocator.free(scores);
    @memset(scores, -7);
    const lengths = try allocator.dupe(i32, lens);
    defer allocator.free(lengths);
    const desc: types.SnapScoreDesc = .{
        .queries = testing.tensor(queries, &.{ b, ring, heads, d }),
        .lens = testing.tensor(lengths, &.{b}),
        .block_table = testing.tensor(cache.table, &.{ b, cache.max_pages }),
        .scores = testing.tensor(scores, &.{ b, kv_heads, max_tokens }),
        .cache = cache.kv,
        .layer = 1,
        .window = window,
        .scale = scale,
    };
    try testing.run(snap_score, &desc, 2);
    const want = try allocator.alloc(f64, max_tokens);
    defer allocator.free(want);
    for (0..b) |s| for (0..kv_heads) |head| {
        const length: u32 = @intCast(lens[s]);
        const got = scores[(s * kv_heads + head) * max_tokens ..][0..max_tokens];
        @memset(want, 0);
        for (0..window * group) |r| {
            if (length <= window) break;
            const position = length - window + @as(u32, @intCast(r)) / group;
            var row: reference.Row = .{ .d = d };
            defer row.deinit();
            const slot = s * ring + position % ring;
            const q = queries[(slot * heads + head * group + r % group) * d ..][0..d];
            for (0..position + 1) |t| {
                try row.add(q, scale, &cache, 1, s, @intCast(t), @intCast(head));
            }
            reference.softmax(row.scores.items);
            for (row.scores.items, 0..) |p, t| want[t] += p;
        }
        const context = length -| window;
        try testing.expectClose(want[0..context], got[0..context], 1e-3, 1e-6);
        for (got[context..]) |x| try std.testing.expectEqual(@as(f32, -7), x);
    };
}

test "snap_score against plain softmax" {
    const lens = [_]i32{ 0, 7, 8, 9, 71, 136, 530, 600 };
    try checkScores(64, 2, 3, 7, &lens, 1);
    try checkScores(128, 1, 1, 8, &lens, 2);
    try checkScores(96, 2, 8, 1, &.{ 1, 2, 65, 520 }, 3);
    try checkScores(256, 1, 2, 64, &.{ 65, 200 }, 4);
}

/// The kept tokens by sorting: value descending, place ascending.
fn selectBySorting(pooled: []const f32, count: usize, out: []i32) void {
    const Order = struct {
        fn before(values: []const f32, a: i32, b: i32) bool {
            const x = values[@intCast(a)];
            const y = values[@intCast(b)];
            return if (x == y) a < b else x > y;
        }
    };
    for (out, 0..) |*index, i| index.* = @intCast(i);
    std.mem.sort(i32, out, pooled, Order.before);
    std.mem.sort(i32, out[0..count], {}, std.sort.asc(i32));
}

fn checkSelection(pooling: types.Pooling, kernel: u32, coarse: bool, seed: u64) !void {
    var prng = std.Random.DefaultPrng.init(seed);
    const random = prng.random();
    var lens = [_]i32{ 0, 10, 64, 65, 80, 500, 68 };
    const b = lens.len;
    const kv_heads = 2;
    const max_tokens = 512;
    const budget = 64;
    const window = 16;
    var scores: [b * kv_heads * max_tokens]f32 = undefined;
    for (&scores) |*x| {
        x.* = if (coarse) @floatFromInt(random.uintLessThan(u32, 4)) else random.float(f32);
    }
    var pooled: [scores.len]f32 = undefined;
    var indices: [b * kv_heads * budget]i32 = @splat(-1);
    var prefix_len: [b]i32 = undefined;
    var tail_start: [b]i32 = undefined;
    const desc: types.SnapSelectDesc = .{
        .scores = testing.tensor(@as([]f32, &scores), &.{ b, kv_heads, max_tokens }),
        .lens = testing.tensor(@as([]i32, &lens), &.{b}),
        .indices = testing.tensor(@as([]i32, &indices), &.{ b, kv_heads, budget }),
        .prefix_len = testing.tensor(@as([]i32, &prefix_len), &.{b}),
        .tail_start = testing.tensor(@as([]i32, &tail_start), &.{b}),
        .pooled = testing.tensor(@as([]f32, &pooled), &.{ b, kv_heads, max_tokens }),
        .budget = budget,
        .window = window,
        .kernel = kernel,
        .pooling = pooling,
    };
    try testing.run(snap_select, &desc, 3);
    for (lens, 0..) |length, s| {
        const context: usize = @intCast(@max(length - window, 0));
        const count: usize = if (length <= budget) 0 else @min(budget - window, context);
        try std.testing.expectEqual(@as(i32, @intCast(count)), prefix_len[s]);
        const tail = if (length <= budget) 0 else length - window;
        try std.testing.expectEqual(tail, tail_start[s]);
        for (0..kv_heads) |head| {
            const offset = s * kv_heads + head;
            const got = indices[offset * budget ..][0..budget];
            for (got[count..]) |index| try std.testing.expectEqual(@as(i32, -1), index);
            if (count == 0) continue;
            const values = scores[offset * max_tokens ..][0..context];
            const smooth = pooled[offset * max_tokens ..][0..context];
            for (smooth, 0..) |value, i| {
                var sum: f64 = 0;
                var max: f64 = 0;
                var neighbours: f64 = 0;
                for (values, 0..) |x, j| {
                    if (@max(i, j) - @min(i, j) > kernel / 2) continue;
                    sum += x;
                    max = @max(max, x);
                    neighbours += 1;
                }
                const want = if (pooling == .max) max else sum / neighbours;
                try std.testing.expectApproxEqRel(want, @as(f64, value), 1e-5);
            }
            var order: [max_tokens]i32 = undefined;
            selectBySorting(smooth, count, order[0..context]);
            try std.testing.expectEqualSlices(i32, order[0..count], got[0..count]);
        }
    }
}

test "snap_select keeps exactly the best, the earlier of equals" {
    for ([_]types.Pooling{ .average, .max }) |pooling| for ([_]u32{ 1, 5, 7 }) |kernel| {
        try checkSelection(pooling, kernel, false, kernel);
        try checkSelection(pooling, kernel, true, kernel);
    };
}

test "gather_kv copies the selected tokens in order" {
    var prng = std.Random.DefaultPrng.init(5);
    const random = prng.random();
    for ([_]u32{ 64, 96 }) |d| {
        const source = try reference.Cache.init(random, .{
            .b = 2,
            .max_tokens = 400,
            .kv_heads = 2,
            .d = d,
        });
        defer source.deinit();
        const out = try reference.Cache.init(random, .{
            .b = 2,
            .max_tokens = 200,
            .kv_heads = 2,
            .d = d,
            .page_size = 128,
        });
        defer out.deinit();
        const n = 150;
        var indices: [2 * 2 * n]i32 = undefined;
        for (&indices) |*index| index.* = random.intRangeLessThan(i32, 0, 400);
        var prefix_len = [_]i32{ 65, 150 };
        const desc: types.GatherKvDesc = .{
            .indices = testing.tensor(@as([]i32, &indices), &.{ 2, 2, n }),
            .prefix_len = testing.tensor(@as([]i32, &prefix_len), &.{2}),
            .source_table = testing.tensor(source.table, &.{ 2, source.max_pages }),
            .out_table = testing.tensor(out.table, &.{ 2, out.max_pages }),
            .source = source.kv,
            .out = out.kv,
            .source_layer = 1,
            .out_layer = 0,
        };
        try testing.run(gather_kv, &desc, 2);
        for (prefix_len, 0..) |length, s| for (0..2) |h| for (0..@intCast(length)) |t| {
            const head: u32 = @intCast(h);
            const to: u32 = @intCast(t);
            const from: u32 = @intCast(indices[(s * 2 + h) * n + t]);
            for (0..d) |j| {
                const i: u32 = @intCast(j);
                const k = out.k(0, s, to, head, i).*;
                const v = out.v(0, s, to, head, i).*;
                try std.testing.expectEqual(source.k(1, s, from, head, i).*, k);
                try std.testing.expectEqual(source.v(1, s, from, head, i).*, v);
            }
        };
    }
}
