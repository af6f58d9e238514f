//! Tests of md_accept: both rules against plain references, corners, and the output distribution of
//! speculation against exact enumeration, with wrong rules that must fail it.
const std = @import("std");
const types = @import("../abi/types.zig");
const testing = @import("../cpu/testing.zig");
const sample = @import("../cpu/ops/sample.zig").sample;
const accept = @import("../cpu/ops/accept.zig").accept;
const reference = @import("reference_sampling.zig");

const gpa = std.testing.allocator;
const expect = std.testing.expect;
const expectEqual = std.testing.expectEqual;
const expectEqualSlices = std.testing.expectEqualSlices;

/// The arrays of one md_accept, for b sequences.
const Batch = struct {
    b: u32,
    g: u32,
    v: u32,
    chain: []i32,
    chosen: []i32,
    logits: []f32,
    q: []f32,
    params: []types.SamplingParams,
    active: []i32,
    lens: []i32,
    count: []i32,
    out: []i32,

    fn init(b: u32, g: u32, v: u32) !Batch {
        const self: Batch = .{
            .b = b,
            .g = g,
            .v = v,
            .chain = try gpa.alloc(i32, b * (g + 2)),
            .chosen = try gpa.alloc(i32, b * (g + 1)),
            .logits = try gpa.alloc(f32, b * (g + 1) * v),
            .q = try gpa.alloc(f32, b * g * v),
            .params = try gpa.alloc(types.SamplingParams, b),
            .active = try gpa.alloc(i32, b),
            .lens = try gpa.alloc(i32, b),
            .count = try gpa.alloc(i32, b),
            .out = try gpa.alloc(i32, b * (g + 1)),
        };
        @memset(self.chain, 0);
        @memset(self.active, 1);
        @memset(self.lens, 0);
        @memset(self.params, reference.plain);
        for (self.params, 0..) |*p, s| p.sequence = @intCast(s);
        return self;
    }

    fn deinit(self: Batch) void {
        inline for (std.meta.fields(Batch)) |field| {
            if (field.type != u32) gpa.free(@field(self, field.name));
        }
    }

    fn desc(self: *const Batch, rule: types.AcceptRule) types.AcceptDesc {
        const b, const g, const v = .{ self.b, self.g, self.v };
        const with_q = rule == .rejection and g > 0;
        const chosen = reference.tensor(i32, self.chosen, &.{ b, g + 1 });
        const logits = reference.tensor(f32, self.logits, &.{ b * (g + 1), v });
        return .{
            .chain = reference.tensor(i32, self.chain, &.{ b, g + 2 }),
            .target_tokens = if (rule == .match) chosen else .{},
            .target_logits = if (rule == .rejection) logits else .{},
            .draft_probs = if (with_q) reference.tensor(f32, self.q, &.{ b, g, v }) else .{},
            .params = reference.paramsTensor(self.params),
            .active = reference.tensor(i32, self.active, &.{b}),
            .lens = reference.tensor(i32, self.lens, &.{b}),
            .count = reference.tensor(i32, self.count, &.{b}),
            .out = reference.tensor(i32, self.out, &.{ b, g + 1 }),
            .rule = rule,
        };
    }

    fn chainRow(self: *const Batch, s: usize) []i32 {
        return self.chain[s * (self.g + 2) ..][0 .. self.g + 2];
    }

    fn outRow(self: *const Batch, s: usize) []i32 {
        return self.out[s * (self.g + 1) ..][0 .. self.g + 1];
    }

    fn logitsRow(self: *const Batch, s: usize, j: usize) []f32 {
        return self.logits[(s * (self.g + 1) + j) * self.v ..][0..self.v];
    }

    fn qRow(self: *const Batch, s: usize, j: usize) []f32 {
        return self.q[(s * self.g + j) * self.v ..][0..self.v];
    }

    /// Checks everything that md_accept writes for one sequence, given what it had to emit.
    fn expectState(
        self: *const Batch,
        s: usize,
        before: []const i32,
        len: i32,
        emitted: []const i32,
    ) !void {
        const n = emitted.len;
        try expectEqual(@as(i32, @intCast(n)), self.count[s]);
        try expectEqual(len + @as(i32, @intCast(n)), self.lens[s]);
        try expectEqualSlices(i32, emitted, self.outRow(s)[0..n]);
        for (self.outRow(s)[n..]) |x| try expectEqual(@as(i32, -1), x);
        const after = self.chainRow(s);
        try expectEqualSlices(i32, before[2..], after[2..]);
        if (n == 0) return expectEqualSlices(i32, before, after);
        try expectEqual(if (n >= 2) emitted[n - 2] else before[1], after[0]);
        try expectEqual(emitted[n - 1], after[1]);
    }
};

test "match: leading agreement, lengths, chain, inactive sequences, gamma 0 to 16" {
    var prng = std.Random.DefaultPrng.init(51);
    const random = prng.random();
    for (0..17) |gamma| {
        const g: u32 = @intCast(gamma);
        const batch: Batch = try .init(33, g, 1);
        defer batch.deinit();
        for (batch.chain) |*x| x.* = random.intRangeLessThan(i32, 0, 4);
        for (0..batch.b) |s| {
            batch.active[s] = @intFromBool(random.uintLessThan(u32, 5) != 0);
            batch.lens[s] = random.intRangeLessThan(i32, 0, 9000);
            for (batch.chosen[s * (g + 1) ..][0 .. g + 1], 0..) |*x, j| {
                const agrees = j < g and random.uintLessThan(u32, 4) != 0;
                x.* = if (agrees) batch.chainRow(s)[2 + j] else random.intRangeLessThan(i32, 0, 4);
            }
        }
        const before = try gpa.dupe(i32, batch.chain);
        defer gpa.free(before);
        const lens = try gpa.dupe(i32, batch.lens);
        defer gpa.free(lens);
        const desc = batch.desc(.match);
        try testing.run(accept, &desc, 2);
        for (0..batch.b) |s| {
            const chain = before[s * (g + 2) ..][0 .. g + 2];
            const chosen = batch.chosen[s * (g + 1) ..][0 .. g + 1];
            var n: usize = 0;
            if (batch.active[s] != 0) {
                n = 1;
                while (n <= g and chain[n + 1] == chosen[n - 1]) n += 1;
            }
            try batch.expectState(s, chain, lens[s], chosen[0..n]);
        }
    }
}

/// Random target rows, drafts drawn by md_sample from random draft rows, as an iteration would.
fn randomIteration(batch: *const Batch, random: std.Random, runner: reference.Runner) !void {
    const draft_logits = try gpa.alloc(f32, batch.q.len);
    defer gpa.free(draft_logits);
    for (batch.logits) |*x| x.* = 1.5 * random.floatNorm(f32);
    const positions = try gpa.alloc(i32, batch.b * batch.g);
    defer gpa.free(positions);
    for (0..batch.b) |s| {
        batch.lens[s] = random.intRangeLessThan(i32, 0, 9000);
        batch.active[s] = @intFromBool(random.uintLessThan(u32, 6) != 0);
        const p = &batch.params[s];
        p.seed_low = random.int(u32);
        p.temperature = ([_]f32{ 0, 0.6, 1 })[random.uintLessThan(usize, 3)];
        if (random.boolean()) p.top_k = 1 + random.uintLessThan(u32, batch.v);
        if (random.boolean()) p.top_p = 0.5 + 0.5 * random.float(f32);
        if (random.boolean()) p.min_p = 0.1 * random.float(f32);
        for (0..batch.g) |j| {
            positions[s * batch.g + j] = batch.lens[s] + @as(i32, @intCast(j));
            const row = draft_logits[(s * batch.g + j) * batch.v ..][0..batch.v];
            for (row, batch.logitsRow(s, j)) |*x, y| x.* = y + 0.8 * random.floatNorm(f32);
        }
        const chain = batch.chainRow(s);
        for (chain[0..2]) |*x| x.* = random.intRangeLessThan(i32, 0, 9);
    }
    if (batch.g == 0) return;
    const desc: types.SampleDesc = .{
        .logits = reference.tensor(f32, draft_logits, &.{ batch.b * batch.g, batch.v }),
        .params = reference.paramsTensor(batch.params),
        .positions = reference.tensor(i32, positions, &.{batch.b * batch.g}),
        .out = reference.tensor(i32, batch.chain[2..], &.{ batch.b, batch.g }),
        .probs = reference.tensor(f32, batch.q, &.{ batch.b, batch.g, batch.v }),
        .out_stride = batch.g + 2,
        .probs_stride = batch.g,
        .stream = .draft,
    };
    runner.run(sample, &desc);
}

test "rejection against f64: every decision, all temperatures and filters" {
    const runner: reference.Runner = try .init();
    defer runner.deinit();
    var prng = std.Random.DefaultPrng.init(std.testing.random_seed);
    const random = prng.random();
    errdefer std.debug.print("seed {d}\n", .{std.testing.random_seed});
    var close: usize = 0;
    var sequences: usize = 0;
    for (0..60) |trial| {
        const g: u32 = @intCast(trial % 7);
        const v = ([_]u32{ 2, 7, 64, 65, 500 })[trial % 5];
        const batch: Batch = try .init(20, g, v);
        defer batch.deinit();
        try randomIteration(&batch, random, runner);
        const before = try gpa.dupe(i32, batch.chain);
        defer gpa.free(before);
        const lens = try gpa.dupe(i32, batch.lens);
        defer gpa.free(lens);
        const desc = batch.desc(.rejection);
        try testing.run(accept, &desc, 2);
        for (0..batch.b) |s| {
            sequences += 1;
            const chain = before[s * (g + 2) ..][0 .. g + 2];
            var emitted: std.ArrayList(i32) = .empty;
            defer emitted.deinit(gpa);
            var margin: f64 = 1;
            if (batch.active[s] != 0) {
                margin = try plainRejection(&batch, s, chain[2..], lens[s], &emitted);
            }
            if (margin < 1e-4) {
                close += 1;
            } else try batch.expectState(s, chain, lens[s], emitted.items);
        }
    }
    try expect(close < sequences / 50);
}

fn plainRejection(
    batch: *const Batch,
    s: usize,
    drafts: []const i32,
    len: i32,
    emitted: *std.ArrayList(i32),
) !f64 {
    var arena_state: std.heap.ArenaAllocator = .init(gpa);
    defer arena_state.deinit();
    const arena = arena_state.allocator();
    const p = try arena.alloc([]const f64, batch.g + 1);
    const q = try arena.alloc([]const f64, batch.g);
    var margin: f64 = 1;
    for (p, 0..) |*row, j| {
        const processed = try reference.process(batch.logitsRow(s, j), batch.params[s]);
        defer gpa.free(processed.p);
        row.* = try arena.dupe(f64, processed.p);
        margin = @min(margin, 10 * processed.margin);
    }
    for (q, 0..) |*row, j| {
        const wide = try arena.alloc(f64, batch.v);
        for (wide, batch.qRow(s, j)) |*x, y| x.* = y;
        row.* = wide;
    }
    return @min(margin, try reference.reject(.{}, p, q, drafts, batch.params[s], len, emitted));
}

test "rejection at temperature 0 is the greedy match, whatever the draft's distribution" {
    const runner: reference.Runner = try .init();
    defer runner.deinit();
    var prng = std.Random.DefaultPrng.init(61);
    const random = prng.random();
    const g = 4;
    const batch: Batch = try .init(64, g, 9);
    defer batch.deinit();
    for (batch.params) |*p| p.temperature = 0;
    for (batch.logits) |*x| x.* = @round(4 * random.floatNorm(f32));
    for (batch.q) |*x| x.* = random.float(f32);
    for (0..batch.b) |s| {
        for (0..g + 1) |j| {
            const best: i32 = @intCast(reference.argmax(batch.logitsRow(s, j)));
            batch.chosen[s * (g + 1) + j] = best;
            if (j == g) continue;
            const agrees = random.uintLessThan(u32, 3) != 0;
            const other = random.intRangeLessThan(i32, 0, 9);
            batch.chainRow(s)[2 + j] = if (agrees) best else other;
        }
    }
    const chain = try gpa.dupe(i32, batch.chain);
    defer gpa.free(chain);
    runner.run(accept, &batch.desc(.match));
    const want = try gpa.dupe(i32, batch.out);
    defer gpa.free(want);
    @memcpy(batch.chain, chain);
    @memset(batch.lens, 0);
    runner.run(accept, &batch.desc(.rejection));
    try expectEqualSlices(i32, want, batch.out);
}

test "corners: equal distributions stand, an unlikely or impossible draft divides nothing by zero" {
    const runner: reference.Runner = try .init();
    defer runner.deinit();
    const v = 70;
    const batch: Batch = try .init(6, 1, v);
    defer batch.deinit();
    for (batch.logits, 0..) |*x, i| x.* = @sin(@as(f32, @floatFromInt(i)));
    // Draft rows: 0 and 1 the target's own bits, 2 zero everywhere, 3 above p everywhere (nothing
    // is left), 4 a token past the vocabulary, 5 NaN-free zero at d.
    const p = try reference.process(batch.logitsRow(0, 0), batch.params[0]);
    defer gpa.free(p.p);
    for (0..batch.b) |s| {
        for (batch.logitsRow(s, 0), batch.logitsRow(0, 0)) |*x, y| x.* = y;
        for (batch.qRow(s, 0), p.p) |*x, y| x.* = switch (s) {
            2 => 0,
            3 => @floatCast(1000 * y),
            else => @floatCast(y),
        };
        batch.chainRow(s)[2] = ([6]i32{ 3, 69, 5, 8, 70, 9 })[s];
    }
    batch.qRow(5, 0)[9] = 0;
    runner.run(accept, &batch.desc(.rejection));
    for (0..batch.b) |s| {
        const n: usize = @intCast(batch.count[s]);
        for (batch.outRow(s)[0..n]) |token| try expect(token >= 0 and token < v);
    }
    try expectEqual(@as(i32, 2), batch.count[2]);
    try expectEqual(@as(i32, 2), batch.count[5]);
    try expectEqual(@as(i32, 1), batch.count[4]);
    // Row 3: u < 1/1000 fails for this seed, nothing is left of p - q, and the draw is p's own.
    try expectEqual(@as(i32, 1), batch.count[3]);
    const drawn = reference.draw(p.p, batch.params[3], .recovery, 1);
    try expectEqual(drawn.token, @as(usize, @intCast(batch.outRow(3)[0])));
}

test "a sequence's decision is the same alone and among others" {
    const runner: reference.Runner = try .init();
    defer runner.deinit();
    var prng = std.Random.DefaultPrng.init(71);
    const g = 3;
    const v = 321;
    const batch: Batch = try .init(11, g, v);
    defer batch.deinit();
    try randomIteration(&batch, prng.random(), runner);
    const chain = try gpa.dupe(i32, batch.chain);
    defer gpa.free(chain);
    const lens = try gpa.dupe(i32, batch.lens);
    defer gpa.free(lens);
    const desc = batch.desc(.rejection);
    try testing.run(accept, &desc, 4);
    for (0..batch.b) |s| {
        const alone: Batch = try .init(1, g, v);
        defer alone.deinit();
        @memcpy(alone.chain, chain[s * (g + 2) ..][0 .. g + 2]);
        @memcpy(alone.logits, batch.logits[s * (g + 1) * v ..][0 .. (g + 1) * v]);
        @memcpy(alone.q, batch.q[s * g * v ..][0 .. g * v]);
        alone.params[0] = batch.params[s];
        alone.active[0] = batch.active[s];
        alone.lens[0] = lens[s];
        runner.run(accept, &alone.desc(.rejection));
        try expectEqualSlices(i32, alone.out, batch.outRow(s));
        try expectEqualSlices(i32, alone.chain, batch.chainRow(s));
        try expectEqual(alone.count[0], batch.count[s]);
        try expectEqual(alone.lens[0], batch.lens[s]);
    }
}

test {
    _ = @import("speculation_test.zig");
}
