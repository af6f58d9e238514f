//! The output distribution of whole speculative decoding runs: md_sample and md_accept over a tiny
//! Markov "model", against exact enumeration several tokens deep. Wrong rules must fail the same
//! test.
//!
//! Power. The first three tokens of 60,000 sequences fall into 4^3 = 64 cells (63 degrees of
//! freedom; the rarest expects 46). The statistic's mean is 63, its deviation 11.2; a right rule
//! passes the limit of 120 for one seed in 44,000 (seeds are fixed, so the test never flickers). A
//! rule whose output is (1 - e) target + e draft adds n e^2 sum (draft - target)^2 / target =
//! 254,000 e^2: found with probability 0.98 at e = 0.02 and 0.99999 at e = 0.025. The wrong rules
//! below reach 900 to 11,000.
const std = @import("std");
const types = @import("../abi/types.zig");
const sample = @import("../cpu/ops/sample.zig").sample;
const accept = @import("../cpu/ops/accept.zig").accept;
const reference = @import("reference_sampling.zig");

const gpa = std.testing.allocator;
const expect = std.testing.expect;

const v = 4;
const depth = 3;
const cells = v * v * v;
const sequences = 60_000;
const limit = 120.0;
const first_token = 2;

/// Logits of the next token by the current one. The draft knows the target roughly and is sure of
/// other things.
const target_table = [v][v]f32{
    .{ 0.9, 0.0, -0.6, 0.3 },
    .{ -0.4, 0.8, 0.2, 0.0 },
    .{ 0.1, -0.5, 0.5, 0.7 },
    .{ 0.6, 0.3, 0.0, -0.7 },
};
const draft_table = [v][v]f32{
    .{ 0.0, 0.9, -0.6, 0.0 },
    .{ -0.4, 0.0, 1.1, 0.0 },
    .{ 0.9, -0.5, -0.2, 0.7 },
    .{ 0.6, -0.6, 0.5, 0.2 },
};

const params: types.SamplingParams = .{
    .temperature = 0.8,
    .top_p = 1,
    .min_p = 0,
    .top_k = 0,
    .seed_low = 2026,
    .seed_high = 3,
    .sequence = 0,
};

/// Who decides: the product's kernel, or the plain rule with what the controls break.
const Decider = union(enum) { kernel, plain: reference.Rule };

/// A right iteration but for what a control changes.
const Setup = struct {
    g: u32 = 2,
    decider: Decider = .kernel,
    draft_stream: types.NoiseStream = .draft,
};

/// Probability of each cell, and of accepting a first draft: sum min(p, q).
const Exact = struct { cell: [cells]f64, accepted: f64 };

fn exact() !Exact {
    const p = try transitions(&target_table);
    const q = try transitions(&draft_table);
    var result: Exact = .{ .cell = undefined, .accepted = 0 };
    for (p[first_token], q[first_token]) |x, y| result.accepted += @min(x, y);
    for (&result.cell, 0..) |*cell, i| {
        const a, const b, const c = .{ i / (v * v), i / v % v, i % v };
        cell.* = p[first_token][a] * p[a][b] * p[b][c];
    }
    return result;
}

fn transitions(table: *const [v][v]f32) ![v][v]f64 {
    var result: [v][v]f64 = undefined;
    for (&result, table) |*row, *logits| {
        const processed = try reference.process(logits, params);
        defer gpa.free(processed.p);
        row.* = processed.p[0..v].*;
    }
    return result;
}

/// Decodes all sequences in one batch until each has `depth` tokens, gamma drafts an iteration, as
/// the engine does: drafts one after the other on stream `draft`, one accept, the next iteration
/// from the chain and lengths that it leaves.
const Run = struct {
    counts: [cells]u32,
    /// Sequences whose first draft stood.
    accepted: u32,

    fn of(setup: Setup) !Run {
        const g = setup.g;
        const runner: reference.Runner = try .init();
        defer runner.deinit();
        const state: State = try .init(g);
        defer state.deinit();
        var result: Run = .{ .counts = @splat(0), .accepted = 0 };
        var iteration: usize = 0;
        while (std.mem.indexOfScalar(i32, state.active, 1) != null) : (iteration += 1) {
            for (0..g) |j| state.propose(@intCast(j), setup.draft_stream, runner);
            for (0..sequences) |s| {
                const tokens = state.chain[s * (g + 2) + 1 ..][0 .. g + 1];
                for (tokens, state.logits[s * (g + 1) ..][0 .. g + 1]) |token, *row| {
                    row.* = target_table[@intCast(token)];
                }
            }
            switch (setup.decider) {
                .kernel => runner.run(accept, &state.acceptDesc()),
                .plain => |rule| try state.decide(rule),
            }
            for (0..sequences) |s| {
                const n: usize = @intCast(state.count[s]);
                if (iteration == 0) result.accepted += @intFromBool(n >= 2);
                state.collect(s, n);
            }
        }
        for (state.found) |t| result.counts[@intCast((t[0] * v + t[1]) * v + t[2])] += 1;
        return result;
    }
};

const State = struct {
    g: u32,
    chain: []i32,
    logits: [][v]f32,
    q: []f32,
    params: []types.SamplingParams,
    active: []i32,
    lens: []i32,
    count: []i32,
    out: []i32,
    positions: []i32,
    found: [][depth]i32,
    found_len: []usize,

    fn init(g: u32) !State {
        const self: State = .{
            .g = g,
            .chain = try gpa.alloc(i32, sequences * (g + 2)),
            .logits = try gpa.alloc([v]f32, sequences * (g + 1)),
            .q = try gpa.alloc(f32, sequences * g * v),
            .params = try gpa.alloc(types.SamplingParams, sequences),
            .active = try gpa.alloc(i32, sequences),
            .lens = try gpa.alloc(i32, sequences),
            .count = try gpa.alloc(i32, sequences),
            .out = try gpa.alloc(i32, sequences * (g + 1)),
            .positions = try gpa.alloc(i32, sequences),
            .found = try gpa.alloc([depth]i32, sequences),
            .found_len = try gpa.alloc(usize, sequences),
        };
        @memset(self.active, 1);
        @memset(self.found_len, 0);
        for (0..sequences) |s| {
            self.chain[s * (g + 2) + 1] = first_token;
            // Prompts of different lengths: noise must not depend on where in the batch a sequence
            // stands.
            self.lens[s] = @intCast(s % 17);
            self.params[s] = params;
            self.params[s].sequence = @intCast(s);
        }
        return self;
    }

    fn deinit(self: State) void {
        inline for (std.meta.fields(State)) |field| {
            if (field.type != u32) gpa.free(@field(self, field.name));
        }
    }

    /// Draft step j: a token after chain[1 + j], written to chain[2 + j], its distribution to q.
    fn propose(
        self: *const State,
        j: u32,
        stream: types.NoiseStream,
        runner: reference.Runner,
    ) void {
        const g = self.g;
        for (0..sequences) |s| {
            self.logits[s] = draft_table[@intCast(self.chain[s * (g + 2) + 1 + j])];
            self.positions[s] = self.lens[s] + @as(i32, @intCast(j));
        }
        const flat: []const f32 = @as([*]const f32, @ptrCast(self.logits.ptr))[0 .. sequences * v];
        const desc: types.SampleDesc = .{
            .logits = reference.tensor(f32, flat, &.{ sequences, v }),
            .params = reference.paramsTensor(self.params),
            .positions = reference.tensor(i32, self.positions, &.{sequences}),
            .out = reference.tensor(i32, self.chain[2 + j ..], &.{ sequences, 1 }),
            .probs = reference.tensor(f32, self.q[j * v ..], &.{ sequences, 1, v }),
            .out_stride = g + 2,
            .probs_stride = g,
            .stream = stream,
        };
        runner.run(sample, &desc);
    }

    fn acceptDesc(self: *const State) types.AcceptDesc {
        const g = self.g;
        const rows = sequences * (g + 1);
        const flat: []const f32 = @as([*]const f32, @ptrCast(self.logits.ptr))[0 .. rows * v];
        return .{
            .chain = reference.tensor(i32, self.chain, &.{ sequences, g + 2 }),
            .target_tokens = .{},
            .target_logits = reference.tensor(f32, flat, &.{ rows, v }),
            .draft_probs = reference.tensor(f32, self.q, &.{ sequences, g, v }),
            .params = reference.paramsTensor(self.params),
            .active = reference.tensor(i32, self.active, &.{sequences}),
            .lens = reference.tensor(i32, self.lens, &.{sequences}),
            .count = reference.tensor(i32, self.count, &.{sequences}),
            .out = reference.tensor(i32, self.out, &.{ sequences, g + 1 }),
            .rule = .rejection,
        };
    }

    /// The same step by the plain rule.
    fn decide(self: *const State, rule: reference.Rule) !void {
        const g = self.g;
        const p_table = try transitions(&target_table);
        const q_table = try transitions(&draft_table);
        var emitted: std.ArrayList(i32) = .empty;
        defer emitted.deinit(gpa);
        for (0..sequences) |s| {
            self.count[s] = 0;
            if (self.active[s] == 0) continue;
            const chain = self.chain[s * (g + 2) ..][0 .. g + 2];
            var p: [16][]const f64 = undefined;
            var q: [16][]const f64 = undefined;
            for (p[0 .. g + 1], q[0 .. g + 1], chain[1..]) |*p_row, *q_row, token| {
                p_row.* = &p_table[@intCast(token)];
                q_row.* = &q_table[@intCast(token)];
            }
            emitted.clearRetainingCapacity();
            _ = try reference.reject(
                rule,
                p[0 .. g + 1],
                q[0..g],
                chain[2..],
                self.params[s],
                self.lens[s],
                &emitted,
            );
            const n = emitted.items.len;
            @memcpy(self.out[s * (g + 1) ..][0..n], emitted.items);
            self.count[s] = @intCast(n);
            self.lens[s] += @intCast(n);
            chain[1] = emitted.items[n - 1];
        }
    }

    /// Keeps the first `depth` tokens of a sequence; it leaves the batch when it has them.
    fn collect(self: *const State, s: usize, n: usize) void {
        for (self.out[s * (self.g + 1) ..][0..n]) |token| {
            if (self.found_len[s] == depth) break;
            self.found[s][self.found_len[s]] = token;
            self.found_len[s] += 1;
        }
        self.active[s] = @intFromBool(self.found_len[s] < depth);
    }
};

test "rejection speculation samples the target's distribution" {
    const want = try exact();
    for ([_]u32{ 1, 2, 4 }) |g| {
        const run: Run = try .of(.{ .g = g });
        const statistic = reference.chiSquare(&run.counts, &want.cell);
        errdefer std.debug.print("gamma {d}: chi-square {d:.1}\n", .{ g, statistic });
        try expect(statistic < limit);
        // The acceptance of the first draft is sum min(p, q), the most that any lossless rule has;
        // 5 deviations.
        const n: f64 = sequences;
        const deviation = @sqrt(n * want.accepted * (1 - want.accepted));
        try expect(@abs(@as(f64, @floatFromInt(run.accepted)) - n * want.accepted) < 5 * deviation);
    }
}

test "the plain rule passes too, and each wrong rule fails" {
    const want = try exact();
    const right: Run = try .of(.{ .decider = .{ .plain = .{} } });
    try expect(reference.chiSquare(&right.counts, &want.cell) < limit);
    const wrong = [_]Setup{
        // Recovery drawn from p as it is.
        .{ .decider = .{ .plain = .{ .residual = false } } },
        // Recovery drawn with the noise that made the rejected draft: in the rule, then by a caller
        // of the kernel.
        .{ .decider = .{ .plain = .{ .recovery = .draft } } },
        .{ .draft_stream = .recovery },
        // The accept test made with the draft's noise.
        .{ .draft_stream = .accept },
    };
    for (wrong) |setup| {
        const run: Run = try .of(setup);
        const statistic = reference.chiSquare(&run.counts, &want.cell);
        errdefer std.debug.print("{any}: chi-square {d:.1}\n", .{ setup, statistic });
        try expect(statistic > 5 * limit);
    }
}
