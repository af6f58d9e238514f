//! Top-k, top-p and min-p as one threshold. Nothing is sorted: the threshold is found by bisecting
//! the bits of a float, counting or weighing what lies above, over the few entries that can matter.
const std = @import("std");
const types = @import("../../abi/types.zig");
const simd = @import("../simd.zig");
const kernel_mod = @import("../kernel.zig");
const distribution = @import("distribution.zig");
const race = @import("race.zig");

const W = simd.W;
const F = simd.F;
const Distribution = distribution.Distribution;
const run_entries = distribution.run_entries;

/// Vocabulary that the filters can hold: every entry of a row may be a candidate.
pub const max_vocabulary = kernel_mod.scratch_bytes / @sizeOf(f32);

/// The octaves below which entries are filtered out.
///  - top-k keeps what is at least the k-th largest (ties with it included).
///  - top-p keeps, of these, the shortest run of largest entries whose share of the mass reaches
///    top_p (ties with its last included; at least the largest).
///  - min-p keeps what has at least min_p times the largest probability.
pub fn floorOf(
    dist: *const Distribution,
    params: *const types.SamplingParams,
    scratch: *const kernel_mod.Scratch,
) f32 {
    std.debug.assert(dist.v <= max_vocabulary);
    var floor = distribution.deepest;
    const with_k = params.top_k != 0 and params.top_k < dist.v;
    var candidates: Candidates = .{ .values = @ptrCast(scratch.data) };
    if (with_k) {
        candidates.collect(dist, groupBound(dist, params.top_k, candidates.values));
        floor = candidates.threshold(count, @floatFromInt(params.top_k), floor);
    }
    if (params.top_p < 1) {
        const top_p = @max(params.top_p, 0);
        if (with_k) {
            const total = candidates.measure(mass, floor);
            floor = candidates.threshold(mass, top_p * total, floor);
        } else {
            // Entries this far down sum to less than the share that may go, so none of them is
            // kept.
            const total = dist.mass();
            const share = (1 - top_p) * total / @as(f32, @floatFromInt(dist.v));
            floor = @max(floor, logarithm(share) - 0.01);
            candidates.collect(dist, floor);
            floor = candidates.threshold(mass, top_p * total, floor);
        }
    }
    if (params.min_p > 0) floor = @max(floor, @min(logarithm(params.min_p), 0));
    return floor;
}

/// A bound that the k-th largest entry reaches: the k-th largest of the maxima of disjoint groups.
fn groupBound(dist: *const Distribution, k: u32, buffer: [*]f32) f32 {
    const runs_of_group = 4;
    var maxima: Candidates = .{ .values = buffer };
    var base: u32 = 0;
    while (base < dist.v) : (base += runs_of_group * run_entries) {
        var top = simd.splat(-std.math.inf(f32));
        var start = base;
        while (start < @min(base + runs_of_group * run_entries, dist.v)) : (start += run_entries) {
            for (dist.octaves(start)) |x| top = @max(top, x);
        }
        simd.storeF(maxima.values + maxima.len, top);
        maxima.len += W;
    }
    return maxima.threshold(count, @floatFromInt(k), distribution.deepest);
}

/// log2 of a positive x, by the kernels' own polynomial: no result may hang on the machine's libm.
fn logarithm(x: f32) f32 {
    const lanes: [W]f32 = race.log2(simd.splat(@max(x, std.math.floatMin(f32))));
    return lanes[0];
}

fn count(_: F) F {
    return simd.splat(1);
}

fn mass(octaves: F) F {
    return simd.exp2(octaves);
}

/// Octaves of some entries, in the order of the vocabulary, filled with -inf to a whole vector.
const Candidates = struct {
    values: [*]f32,
    len: u32 = 0,

    /// Takes the entries that are at least `bound`.
    fn collect(self: *Candidates, dist: *const Distribution, bound: f32) void {
        self.len = 0;
        var base: u32 = 0;
        while (base < dist.v) : (base += run_entries) {
            for (dist.octaves(base)) |x| self.append(x, x >= simd.splat(bound));
        }
        while (self.len % W != 0) self.push(-std.math.inf(f32));
    }

    inline fn append(self: *Candidates, x: F, take: @Vector(W, bool)) void {
        var mask: @Int(.unsigned, W) = @bitCast(take);
        const lanes: [W]f32 = x;
        while (mask != 0) : (mask &= mask - 1) self.push(lanes[@ctz(mask)]);
    }

    inline fn push(self: *Candidates, x: f32) void {
        self.values[self.len] = x;
        self.len += 1;
    }

    /// Sum of `value` over the entries that are at least `bound`.
    fn measure(self: *const Candidates, comptime value: fn (F) F, bound: f32) f32 {
        var sum = simd.splat(0);
        var i: u32 = 0;
        while (i < self.len) : (i += W) {
            const x = simd.loadF(self.values + i);
            sum += @select(f32, x >= simd.splat(bound), value(x), simd.splat(0));
        }
        return @reduce(.Add, sum);
    }

    /// The largest bound, not under `lowest`, whose measure reaches `goal`; `lowest` where none
    /// does. Octaves are at most 0, so the bits of their magnitude are in order, and the measure
    /// only grows with them (rounding keeps a sum of non-negatives monotone).
    fn threshold(self: *const Candidates, comptime value: fn (F) F, goal: f32, lowest: f32) f32 {
        var low: u32 = 0;
        var high: u32 = @bitCast(-lowest);
        while (low < high) {
            const middle = low + (high - low) / 2;
            const bound = -@as(f32, @bitCast(middle));
            if (self.measure(value, bound) >= goal) high = middle else low = middle + 1;
        }
        return -@as(f32, @bitCast(low));
    }
};
