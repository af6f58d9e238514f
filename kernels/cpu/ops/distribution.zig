//! What a row of logits means under a sequence's SamplingParams: the distribution that sampling
//! draws from, and the one that rejection compares. Both ops build it here, so that equal logits
//! give equal bits.
//!
//! The order is Hugging Face's and vLLM's: temperature, top-k, top-p, min-p. An entry is measured
//! in octaves below the largest, (logit - max) / (T ln 2) <= 0, and every filter comes down to one
//! `floor` on octaves: what ties with the last entry kept is kept as well, so no result depends on
//! the order of the vocabulary. An entry more than 126 octaves below the largest (2^-126 of its
//! weight) has no mass.
//!
//! Temperature 0 puts all mass on the largest logit (the lowest entry of those that tie). So does a
//! row whose largest logit is +inf. NaN counts as -inf; a row with nothing above -inf means entry
//! 0.
const std = @import("std");
const types = @import("../../abi/types.zig");
const simd = @import("../simd.zig");
const kernel_mod = @import("../kernel.zig");
const filters = @import("filters.zig");
const philox = @import("philox.zig");
const race_mod = @import("race.zig");

const W = simd.W;
const F = simd.F;

pub const Run = race_mod.Run;
pub const run_entries = race_mod.run_entries;

/// Octaves below the largest entry at which mass ends.
pub const deepest: f32 = -126;

const none = -std.math.inf(f32);

pub const Distribution = struct {
    logits: [*]const f32,
    v: u32,
    max: f32,
    /// Lowest entry that has the largest logit.
    mode: u32,
    /// All mass on `mode`.
    point: bool,
    /// Octaves a unit of logit.
    scale: f32,
    floor: f32 = deepest,
    /// 1 / sum of the weights that the filters leave; set by `normalise`.
    inverse_total: f32 = 1,

    /// `logits` (v) f32; `scratch` is used while this runs.
    pub fn init(
        logits: [*]const f32,
        v: u32,
        params: *const types.SamplingParams,
        scratch: *const kernel_mod.Scratch,
    ) Distribution {
        const max = largest(logits, v);
        var self: Distribution = .{
            .logits = logits,
            .v = v,
            .max = max,
            .mode = if (max == none) 0 else indexOf(logits, v, max),
            .point = !(params.temperature > 0) or std.math.isInf(max),
            .scale = @min(std.math.log2e / params.temperature, 1e30),
        };
        if (!self.point) self.floor = filters.floorOf(&self, params, scratch);
        return self;
    }

    /// Octaves of the entries base .. base + 63, -inf where filtered or past the end.
    pub inline fn octaves(self: *const Distribution, base: u32) Run {
        if (self.point) return oneHot(self.mode, base, 0, none);
        var run = loadRun(self.logits, self.v, base);
        inline for (&run) |*x| {
            const depth = (x.* - simd.splat(self.max)) * simd.splat(self.scale);
            x.* = @select(f32, depth >= simd.splat(self.floor), depth, simd.splat(none));
        }
        return run;
    }

    /// Must come before `probabilities`.
    pub fn normalise(self: *Distribution) void {
        if (!self.point) self.inverse_total = 1 / self.mass();
    }

    /// Probabilities of the entries base .. base + 63.
    pub inline fn probabilities(self: *const Distribution, base: u32) Run {
        if (self.point) return oneHot(self.mode, base, 1, 0);
        var run = self.octaves(base);
        inline for (&run) |*x| x.* = weight(x.*) * simd.splat(self.inverse_total);
        return run;
    }

    pub fn probability(self: *const Distribution, token: u32) f32 {
        const base = token - token % run_entries;
        const run: [run_entries]f32 = @bitCast(self.probabilities(base));
        return run[token - base];
    }

    /// Sum of the weights of what the floor leaves, the largest entry's being 1. The order of the
    /// additions is fixed by v and the level alone.
    pub fn mass(self: *const Distribution) f32 {
        var sums: Run = @splat(simd.splat(0));
        var base: u32 = 0;
        while (base < self.v) : (base += run_entries) {
            for (&sums, self.octaves(base)) |*sum, x| sum.* += weight(x);
        }
        var sum = sums[0];
        for (sums[1..]) |x| sum += x;
        return @reduce(.Add, sum);
    }

    /// Draws a token with this noise.
    pub fn draw(self: *const Distribution, noise: philox.Noise) u32 {
        if (self.point) return self.mode;
        var race: race_mod.Race = .{ .noise = noise };
        // The likeliest entry first: its score lets most others go without noise.
        const start = self.mode - self.mode % run_entries;
        race.offer(start, &self.octaves(start));
        var base: u32 = 0;
        while (base < self.v) : (base += run_entries) race.offer(base, &self.octaves(base));
        return race.token;
    }
};

/// 2^octaves, 0 for what has no mass.
pub inline fn weight(octaves: F) F {
    return @select(f32, octaves >= simd.splat(deepest), simd.exp2(octaves), simd.splat(0));
}

/// Values base .. base + 63 of a row of v, -inf past its end.
pub inline fn loadRun(row: [*]const f32, v: u32, base: u32) Run {
    var run: Run = undefined;
    if (v - base >= run_entries) {
        inline for (&run, 0..) |*x, i| x.* = simd.loadF(row + base + i * W);
        return run;
    }
    var tail: [run_entries]f32 align(@alignOf(F)) = @splat(none);
    @memcpy(tail[0 .. v - base], row[base..v]);
    return @bitCast(tail);
}

inline fn oneHot(mode: u32, base: u32, on: f32, off: f32) Run {
    var run: [run_entries]f32 align(@alignOf(F)) = @splat(off);
    if (mode -% base < run_entries) run[mode - base] = on;
    return @bitCast(run);
}

/// The largest value, NaN apart; -inf where there is none.
fn largest(row: [*]const f32, v: u32) f32 {
    var tops: Run = @splat(simd.splat(none));
    var base: u32 = 0;
    while (base < v) : (base += run_entries) {
        for (&tops, loadRun(row, v, base)) |*top, x| top.* = @select(f32, x > top.*, x, top.*);
    }
    var top = tops[0];
    for (tops[1..]) |x| top = @max(top, x);
    return @reduce(.Max, top);
}

fn indexOf(row: [*]const f32, v: u32, value: f32) u32 {
    var base: u32 = 0;
    while (base < v) : (base += run_entries) {
        for (loadRun(row, v, base), 0..) |x, i| {
            const lane = std.simd.firstTrue(x == simd.splat(value)) orelse continue;
            return base + @as(u32, @intCast(i * W)) + lane;
        }
    }
    unreachable;
}
