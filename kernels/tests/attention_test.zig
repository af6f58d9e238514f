//! Attention against a reference in f64, and bit for bit between all ways to batch and cut the same
//! rows.
const std = @import("std");
const types = @import("../abi/types.zig");
const testing = @import("../cpu/testing.zig");
const attention_mod = @import("../cpu/ops/attention.zig");
const reference = @import("reference_attention.zig");

const allocator = std.testing.allocator;

const Mode = enum { full, view, prefix_cache, indices };

const Case = struct {
    d: u32 = 64,
    kv_heads: u32 = 2,
    group: u32 = 3,
    page_size: u32 = 64,
    mode: Mode = .full,
    sinks: u32 = 0,
    window: u32 = 0,
    /// with q_sink
    rotated: bool = true,
    /// new rows and lengths by sequence
    rows: []const u32,
    lens: []const u32,
    /// prefix tokens and first token of the tail, by sequence, for prefix_cache and indices
    prefix: []const u32 = &.{},
    tail: []const u32 = &.{},
    seed: u64 = 1,
};

/// All inputs of a case. The query of (sequence, position) is drawn once, so that any batch can be
/// made of the same rows.
const Fixture = struct {
    case: Case,
    cache: reference.Cache,
    prefix: reference.Cache,
    /// (b, capacity, h, d)
    q: []u16,
    q_sink: []u16,
    indices: []i32,
    capacity: u32,

    const scale = 0.17;
    const layer = 1;

    fn init(case: Case) !Fixture {
        var prng = std.Random.DefaultPrng.init(case.seed);
        const random = prng.random();
        const b: u32 = @intCast(case.lens.len);
        const capacity = @max(std.mem.max(u32, case.lens), 1);
        const prefixes = if (case.prefix.len > 0) case.prefix else &[_]u32{0};
        const prefix_capacity = @max(std.mem.max(u32, prefixes), 1);
        const shape: reference.Cache.Shape = .{
            .b = b,
            .max_tokens = capacity,
            .kv_heads = case.kv_heads,
            .d = case.d,
            .page_size = case.page_size,
        };
        var prefix_shape = shape;
        prefix_shape.max_tokens = prefix_capacity;
        const elements = b * capacity * case.kv_heads * case.group * case.d;
        const indices = try allocator.alloc(i32, b * case.kv_heads * prefix_capacity);
        for (0..b * case.kv_heads) |i| {
            const list = indices[i * prefix_capacity ..][0..prefix_capacity];
            const limit: u32 = if (case.tail.len > 0) case.tail[i / case.kv_heads] else 1;
            for (list) |*index| index.* = random.intRangeLessThan(i32, 0, @intCast(@max(limit, 1)));
            std.mem.sort(i32, list, {}, std.sort.asc(i32));
        }
        return .{
            .case = case,
            .cache = try .init(random, shape),
            .prefix = try .init(random, prefix_shape),
            .q = try testing.randomBf16(random, elements, 1),
            .q_sink = try testing.randomBf16(random, elements, 1),
            .indices = indices,
            .capacity = capacity,
        };
    }

    fn deinit(self: *Fixture) void {
        self.cache.deinit();
        self.prefix.deinit();
        allocator.free(self.q);
        allocator.free(self.q_sink);
        allocator.free(self.indices);
    }

    fn rowElements(self: *const Fixture) usize {
        return self.case.kv_heads * self.case.group * self.case.d;
    }

    fn query(self: *const Fixture, source: []const u16, s: usize, position: usize) []const u16 {
        const elements = self.rowElements();
        return source[(s * self.capacity + position) * elements ..][0..elements];
    }

    /// Runs rows[s] rows of each sequence that end at lens[s]; sequences may be left out with 0
    /// rows. The caller frees.
    fn run(self: *const Fixture, rows: []const u32, lens: []const u32, threads: u32) ![]u16 {
        const case = self.case;
        const b: u32 = @intCast(rows.len);
        var total: u32 = 0;
        const q_start = try allocator.alloc(i32, b + 1);
        defer allocator.free(q_start);
        const kv_len = try allocator.alloc(i32, b);
        defer allocator.free(kv_len);
        q_start[0] = 0;
        for (rows, lens, 0..) |r, length, s| {
            total += r;
            q_start[s + 1] = @intCast(total);
            kv_len[s] = @intCast(length);
        }
        const padding = 1;
        const out = try allocator.alloc(u16, (total + padding) * self.rowElements());
        @memset(out, 0x1234);
        const q = try allocator.alloc(u16, out.len);
        defer allocator.free(q);
        const q_sink = try allocator.alloc(u16, out.len);
        defer allocator.free(q_sink);
        @memset(q, 0);
        @memset(q_sink, 0);
        for (0..b) |s| for (0..rows[s]) |i| {
            const offset = (@as(usize, @intCast(q_start[s])) + i) * self.rowElements();
            const position = lens[s] - rows[s] + i;
            @memcpy(q[offset..][0..self.rowElements()], self.query(self.q, s, position));
            @memcpy(q_sink[offset..][0..self.rowElements()], self.query(self.q_sink, s, position));
        };
        const shape = [_]u32{ total + padding, case.kv_heads * case.group, case.d };
        var desc = std.mem.zeroes(types.AttentionDesc);
        desc.q = testing.tensor(q, &shape);
        if (case.rotated) desc.q_sink = testing.tensor(q_sink, &shape);
        desc.out = testing.tensor(out, &shape);
        desc.q_start = testing.tensor(q_start, &.{b + 1});
        desc.kv_len = testing.tensor(kv_len, &.{b});
        desc.block_table = testing.tensor(self.cache.table, &.{ b, self.cache.max_pages });
        desc.cache = self.cache.kv;
        desc.layer = layer;
        desc.scale = scale;
        desc.window = case.window;
        desc.sinks = case.sinks;
        const lists = try allocator.alloc(i32, 2 * b);
        defer allocator.free(lists);
        if (case.mode == .prefix_cache or case.mode == .indices) {
            for (0..b) |s| {
                lists[s] = @intCast(case.prefix[s]);
                lists[b + s] = @intCast(case.tail[s]);
            }
            desc.prefix_len = testing.tensor(lists[0..b], &.{b});
            desc.tail_start = testing.tensor(lists[b..], &.{b});
        }
        if (case.mode == .prefix_cache) {
            desc.prefix_cache = self.prefix.kv;
            desc.prefix_table = testing.tensor(self.prefix.table, &.{ b, self.prefix.max_pages });
            desc.prefix_layer = 0;
        }
        if (case.mode == .indices) {
            const n: u32 = @intCast(self.indices.len / b / case.kv_heads);
            desc.indices = testing.tensor(self.indices, &.{ b, case.kv_heads, n });
        }
        const bytes = attention_mod.attention_workspace_bytes(&desc);
        const workspace = try allocator.alignedAlloc(u8, .@"64", bytes + 64);
        defer allocator.free(workspace);
        @memset(workspace, 0xaa);
        desc.workspace = testing.tensor(workspace[0..bytes], &.{@intCast(bytes)});
        try testing.run(attention_mod.attention, &desc, threads);
        for (workspace[bytes..]) |byte| try std.testing.expectEqual(@as(u8, 0xaa), byte);
        for (out[total * self.rowElements() ..]) |x| try std.testing.expectEqual(0x1234, x);
        return out;
    }

    /// Row `i` of sequence `s` of a result of `run`.
    fn rowOf(
        self: *const Fixture,
        out: []const u16,
        rows: []const u32,
        s: usize,
        i: usize,
    ) []const u16 {
        var first: usize = 0;
        for (rows[0..s]) |r| first += r;
        return out[(first + i) * self.rowElements() ..][0..self.rowElements()];
    }

    /// One row and query head by the definition in AttentionDesc.
    fn expected(self: *const Fixture, s: usize, position: u32, head: u32, out: []f64) !void {
        const case = self.case;
        const kv_head = head / case.group;
        const q = self.query(self.q, s, position)[head * case.d ..][0..case.d];
        const sink_source = if (case.rotated) self.q_sink else self.q;
        const q_sink = self.query(sink_source, s, position)[head * case.d ..][0..case.d];
        var row: reference.Row = .{ .d = case.d };
        defer row.deinit();
        var start: u32 = 0;
        switch (case.mode) {
            .full => {},
            .view => if (position + 1 > case.sinks + case.window) {
                start = position + 1 - case.window;
                for (0..case.sinks) |t| {
                    try row.add(q_sink, scale, &self.cache, layer, s, @intCast(t), kv_head);
                }
            },
            .prefix_cache => {
                start = case.tail[s];
                for (0..case.prefix[s]) |t| {
                    try row.add(q, scale, &self.prefix, 0, s, @intCast(t), kv_head);
                }
            },
            .indices => {
                start = case.tail[s];
                const n = self.indices.len / case.lens.len / case.kv_heads;
                const list = self.indices[(s * case.kv_heads + kv_head) * n ..][0..case.prefix[s]];
                for (list) |t| try row.add(q, scale, &self.cache, layer, s, @intCast(t), kv_head);
            },
        }
        var token = start;
        while (token <= position) : (token += 1) {
            try row.add(q, scale, &self.cache, layer, s, token, kv_head);
        }
        row.finish(out);
    }

    fn check(self: *const Fixture, threads: u32) !void {
        const case = self.case;
        const out = try self.run(case.rows, case.lens, threads);
        defer allocator.free(out);
        const want = try allocator.alloc(f64, case.d);
        defer allocator.free(want);
        for (case.rows, case.lens, 0..) |rows, length, s| for (0..rows) |i| {
            const got = self.rowOf(out, case.rows, s, i);
            for (0..case.kv_heads * case.group) |head| {
                try self.expected(s, @intCast(length - rows + i), @intCast(head), want);
                try testing.expectClose(want, got[head * case.d ..][0..case.d], 0.02, 0.01);
            }
        };
    }
};

fn checkCase(case: Case) !void {
    var fixture = try Fixture.init(case);
    defer fixture.deinit();
    for ([_]u32{ 1, 7 }) |threads| try fixture.check(threads);
}

test "full attention at lengths around tiles, pages and chunks, every head dim" {
    const lens = [_]u32{ 0, 1, 2, 63, 64, 65, 127, 128, 129, 511, 512, 513, 1025 };
    const rows = [_]u32{ 0, 1, 1, 1, 1, 1, 3, 1, 0, 5, 1, 2, 1 };
    for ([_]u32{ 64, 96, 128, 256 }) |d| {
        try checkCase(.{
            .d = d,
            .kv_heads = 1,
            .group = 2,
            .page_size = 128,
            .rows = &rows,
            .lens = &lens,
        });
    }
}

test "full attention for groups of 1 to 8" {
    for (1..9) |group| {
        try checkCase(.{
            .group = @intCast(group),
            .rows = &.{ 1, 4 },
            .lens = &.{ 200, 130 },
            .seed = group,
        });
    }
}

test "prefill of all rows at once and in blocks" {
    try checkCase(.{ .rows = &.{ 70, 1 }, .lens = &.{ 70, 600 }, .page_size = 192 });
    try checkCase(.{ .rows = &.{60}, .lens = &.{560}, .kv_heads = 1, .group = 3 });
}

test "views before, while and after they slide" {
    const rows = [_]u32{ 1, 1, 6, 2, 9 };
    const lens = [_]u32{ 20, 84, 88, 700, 1100 };
    try checkCase(.{ .mode = .view, .sinks = 4, .window = 80, .rows = &rows, .lens = &lens });
    try checkCase(.{ .mode = .view, .sinks = 0, .window = 64, .rows = &rows, .lens = &lens });
    try checkCase(.{
        .mode = .view,
        .sinks = 70,
        .window = 600,
        .rows = &rows,
        .lens = &lens,
        .rotated = false,
    });
}

test "a prefix from another cache, and from an index list" {
    for ([_]Mode{ .prefix_cache, .indices }) |mode| {
        try checkCase(.{
            .mode = mode,
            .d = 96,
            .rows = &.{ 1, 3, 1, 2, 1 },
            .lens = &.{ 300, 700, 10, 800, 640 },
            .prefix = &.{ 65, 1, 0, 530, 64 },
            .tail = &.{ 280, 690, 0, 600, 639 },
        });
    }
}

/// Runs the last rows of each sequence in calls of every size, alone and together, for several
/// numbers of threads, and wants the bits of one call with all rows.
fn checkInvariance(case: Case) !void {
    var fixture = try Fixture.init(case);
    defer fixture.deinit();
    const all = try fixture.run(case.rows, case.lens, 2);
    defer allocator.free(all);
    for ([_]u32{ 1, 3, 64 }) |threads| {
        const again = try fixture.run(case.rows, case.lens, threads);
        defer allocator.free(again);
        try std.testing.expectEqualSlices(u16, all, again);
    }
    var rows: [8]u32 = undefined;
    var lens: [8]u32 = undefined;
    const b = case.rows.len;
    for (0..b) |s| for ([_]u32{ 1, 2, 3, 4, 5, 7, 8, 17, 40 }) |step| {
        var first: u32 = 0;
        while (first < case.rows[s]) : (first += step) {
            const count = @min(step, case.rows[s] - first);
            @memset(rows[0..b], 0);
            @memset(lens[0..b], 0);
            rows[s] = count;
            lens[s] = case.lens[s] - case.rows[s] + first + count;
            const out = try fixture.run(rows[0..b], lens[0..b], 1 + first % 8);
            defer allocator.free(out);
            for (0..count) |i| {
                const want = fixture.rowOf(all, case.rows, s, first + i);
                try std.testing.expectEqualSlices(u16, want, fixture.rowOf(out, rows[0..b], s, i));
            }
        }
    };
}

test "a row's bits are the same alone, in a verification and in a prefill" {
    const rows = [_]u32{ 80, 17, 1 };
    const lens = [_]u32{ 1060, 520, 1100 };
    try checkInvariance(.{ .rows = &rows, .lens = &lens });
    try checkInvariance(.{ .rows = &rows, .lens = &lens, .group = 1, .d = 128, .kv_heads = 1 });
    try checkInvariance(.{
        .rows = &rows,
        .lens = &lens,
        .mode = .view,
        .sinks = 5,
        .window = 460,
    });
    for ([_]Mode{ .prefix_cache, .indices }) |mode| try checkInvariance(.{
        .rows = &.{ 20, 6 },
        .lens = &.{ 620, 700 },
        .mode = mode,
        .prefix = &.{ 70, 520 },
        .tail = &.{ 605, 600 },
    });
}

test "what lies beyond a row's position in the cache does not matter" {
    const case: Case = .{ .rows = &.{3}, .lens = &.{150} };
    var fixture = try Fixture.init(case);
    defer fixture.deinit();
    const before = try fixture.run(&.{1}, &.{140}, 1);
    defer allocator.free(before);
    for (140..150) |t| for (0..case.kv_heads) |head| for (0..case.d) |i| {
        fixture.cache.k(Fixture.layer, 0, @intCast(t), @intCast(head), @intCast(i)).* = 0x7f00;
        fixture.cache.v(Fixture.layer, 0, @intCast(t), @intCast(head), @intCast(i)).* = 0xff00;
    };
    const after = try fixture.run(&.{1}, &.{140}, 1);
    defer allocator.free(after);
    try std.testing.expectEqualSlices(u16, before, after);
}
