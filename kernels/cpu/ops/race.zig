//! Gumbel-max sampling: the entry with the largest log weight plus Gumbel noise is distributed as
//! the weights. Scores are in octaves (base-2 logarithms), because that is what exp2 and the
//! float's exponent give for nothing; it changes no comparison.
//!
//! Noise of a 32-bit word x: u = (x + 1/2) 2^-32, E = -ln(1 - u), Gumbel = -ln E. All 32 bits are
//! used, since what decides about an unlikely entry is how small E can be: 24 bits would cut off
//! entries below 2^-24 of the likeliest, which a vocabulary of 128k has by the thousand.
const std = @import("std");
const simd = @import("../simd.zig");
const philox = @import("philox.zig");

const W = simd.W;
const F = simd.F;
const U = simd.U;
const I = simd.I;

pub const run_entries = philox.run_entries;

/// The values of one run of entries, in entry order.
pub const Run = [run_entries / W]F;

/// u in [2^-33, 1]: (x + 1/2) 2^-32 in f32, with full relative precision at the lower end.
pub inline fn uniform(x: U) F {
    return @as(F, @floatFromInt(x)) * simd.splat(0x1p-32) + simd.splat(0x1p-33);
}

/// The same for one word.
pub fn uniformScalar(x: u32) f32 {
    return @as(f32, @floatFromInt(x)) * 0x1p-32 + 0x1p-33;
}

/// -log2(E), finite for every x: at most 33, at least -log2(33 ln 2) = -4.52.
pub inline fn gumbel(x: U) F {
    return -log2(-naturalLog(uniform(~x), -uniform(x)));
}

const gumbel_bound = 33.001;

/// log2 of a normal positive x, absolute error under 1e-5.
pub inline fn log2(x: F) F {
    const split = mantissa(x);
    return simd.mulAdd(logOnePlus(split.f), simd.splat(std.math.log2e), split.exponent);
}

/// ln(x), where x - 1 is given too: next to 1 it has the bits that x has lost.
inline fn naturalLog(x: F, x_minus_one: F) F {
    const split = mantissa(x);
    const zero = simd.splat(0);
    const f = @select(f32, split.exponent == zero, x_minus_one, split.f);
    return simd.mulAdd(split.exponent, simd.splat(std.math.ln2), logOnePlus(f));
}

/// x = 2^exponent (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)).
inline fn mantissa(x: F) struct { exponent: F, f: F } {
    const root_half: I = @splat(@bitCast(@as(f32, std.math.sqrt1_2)));
    const mantissa_bits: @Vector(W, u5) = @splat(23);
    const bits: I = @bitCast(x);
    const exponent = (bits -% root_half) >> mantissa_bits;
    const m: F = @bitCast(bits -% (exponent << mantissa_bits));
    return .{ .exponent = @floatFromInt(exponent), .f = m - simd.splat(1) };
}

/// ln(1 + f) = f - f^2 / 2 + f^3 p(f), p fitted on the range of `mantissa` for least relative error
/// (6e-9 before rounding).
inline fn logOnePlus(f: F) F {
    const coefficients = [_]f32{
        0.128813958, -0.131284093, 0.141812154, -0.166245958,
        0.200022859, -0.250008090, 0.333333167,
    };
    var p = simd.splat(-0.0786018213);
    inline for (coefficients) |c| p = simd.mulAdd(p, f, simd.splat(c));
    const square = f * f;
    return f + simd.mulAdd(square, simd.splat(-0.5), square * f * p);
}

/// The running winner. Equal scores: the lowest entry, whatever the order of the offers.
pub const Race = struct {
    noise: philox.Noise,
    best: f32 = -std.math.floatMax(f32),
    token: u32 = none,

    pub const none = std.math.maxInt(u32);

    /// Lets the entries base .. base + 63 run, whose log2 weights are given (-inf: excluded; no
    /// NaN). Entries that cannot win with any noise draw none, which changes nothing but time.
    pub inline fn offer(self: *Race, base: u32, weights: *const Run) void {
        if (!anyAtLeast(weights, self.best - gumbel_bound)) return;
        var first: u32 = 0;
        while (first < 16) : (first += W) {
            const words = self.noise.words(base + first);
            inline for (words, 0..) |word, j| {
                const offset = 16 * @as(u32, j) + first;
                const weight = weights[offset / W];
                if (@reduce(.Or, weight + reach(word) >= simd.splat(self.best))) {
                    self.settle(base + offset, weight + gumbel(word));
                }
            }
        }
    }

    fn settle(self: *Race, first: u32, scores: F) void {
        const top = @reduce(.Max, scores);
        if (top < self.best) return;
        const lane = std.simd.firstTrue(scores == simd.splat(top)) orelse return;
        const token = first + lane;
        if (top == self.best and token > self.token) return;
        self.best = top;
        self.token = token;
    }
};

inline fn anyAtLeast(values: *const Run, bound: f32) bool {
    var top = values[0];
    inline for (values[1..]) |x| top = @max(top, x);
    return @reduce(.Or, top >= simd.splat(bound));
}

/// A cheap upper bound of `gumbel`: E >= u, and the bits of a float read as an integer are a lower
/// bound of its logarithm.
inline fn reach(x: U) F {
    const bits: I = @bitCast(uniform(x));
    return simd.mulAdd(@floatFromInt(bits), simd.splat(-0x1p-23), simd.splat(127.001));
}

test "noise against f64 over the whole range of words" {
    var prng = std.Random.DefaultPrng.init(11);
    const random = prng.random();
    const last = std.math.maxInt(u32);
    const edges = [_]u32{ 0, 1, 2, 255, 1 << 31, (1 << 31) - 1, 0x95f6_1998, last - 1, last };
    for (0..40_000) |i| {
        const x = if (i < edges.len) edges[i] else random.int(u32) >> @intCast(i % 32);
        for ([_]u32{ x, ~x }) |word| {
            const u = (@as(f64, @floatFromInt(word)) + 0.5) * 0x1p-32;
            const want = -@log2(-std.math.log1p(-u));
            const words: U = @splat(word);
            const got: [W]f32 = gumbel(words);
            const bound: [W]f32 = reach(words);
            try std.testing.expectApproxEqAbs(want, got[0], 2e-6 * @max(1, @abs(want)));
            try std.testing.expect(got[0] <= bound[0] and got[0] <= gumbel_bound);
        }
    }
}

test "log2 against f64" {
    var prng = std.Random.DefaultPrng.init(12);
    for (0..20_000) |_| {
        const x: f32 = @floatCast(@exp2(prng.random().float(f64) * 160 - 120));
        const got: [W]f32 = log2(simd.splat(x));
        try std.testing.expectApproxEqAbs(@log2(@as(f64, x)), got[0], 1e-5);
        const near: f32 = 1 + (prng.random().float(f32) - 0.5) * 0.1;
        const got_near: [W]f32 = log2(simd.splat(near));
        try std.testing.expectApproxEqRel(@log2(@as(f64, near)), got_near[0], 1e-6);
    }
}

test "pruning and the order of the offers change nothing" {
    const types = @import("../../abi/types.zig");
    var prng = std.Random.DefaultPrng.init(13);
    const random = prng.random();
    for (0..300) |i| {
        const params = std.mem.zeroInit(types.SamplingParams, .{ .seed_low = random.int(u32) });
        var race: Race = .{ .noise = .init(&params, .target, @intCast(i)) };
        var reversed = race;
        var runs: [20]Run = undefined;
        const spread = 8 * random.float(f32);
        for (&runs) |*run| for (run) |*x| {
            var lanes: [W]f32 = undefined;
            for (&lanes) |*lane| lane.* = spread * random.floatNorm(f32);
            if (random.uintLessThan(u32, 8) == 0) lanes[0] = -std.math.inf(f32);
            x.* = lanes;
        };
        var best = -std.math.inf(f32);
        var token: u32 = Race.none;
        for (&runs, 0..) |*run, n| {
            race.offer(@intCast(run_entries * n), run);
            for (0..run_entries) |entry| {
                const weights: [W]f32 = run[entry / W];
                const id: u32 = @intCast(run_entries * n + entry);
                const words = race.noise.words(id - id % 64 + id % 16 - id % W);
                const noises: [W]f32 = gumbel(words[entry / 16]);
                const score = weights[entry % W] + noises[entry % W];
                if (score > best) {
                    best = score;
                    token = id;
                }
            }
        }
        for (0..runs.len) |n| reversed.offer(@intCast(run_entries * (19 - n)), &runs[19 - n]);
        try std.testing.expectEqual(token, race.token);
        try std.testing.expectEqual(token, reversed.token);
    }
}
