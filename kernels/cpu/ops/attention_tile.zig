//! One step of attention: up to `max_rows` query rows against 64 tokens, everything between in
//! registers.
//!
//! Scores, softmax weights and the weighted sum follow FlashAttention's online softmax (Dao et al.
//! 2205.14135), in base 2. What a row computes depends on its own q, range and tile order only:
//! reductions run along d and along the tokens in the same order for every number of rows, and a
//! row's maximum moves by its own scores alone.
const builtin = @import("builtin");
const std = @import("std");
const simd = @import("../simd.zig");
const layout = @import("../layout.zig");

const F = simd.F;
const U = simd.U;
const W = simd.W;

/// AVX-512 and NEON have 32 vector registers, other x86 levels 16.
const many_registers = W == 16 or builtin.cpu.arch == .aarch64;

/// Query rows whose sums fit in registers together with the operands.
pub const max_rows: u32 = if (many_registers) 6 else 4;

/// Vectors of sums a row in one pass.
const pass_vectors: usize = if (many_registers) 4 else 2;

/// Vectors that hold one row's scores of a tile.
pub const score_vectors = layout.tile / W;

/// Compile-time branches that a step unrolled over rows and vectors takes.
pub const unrolled_quota = 20_000;

/// A pair of bf16 stored the way that it is broadcast fastest.
pub const Operand = if (simd.bf16_dot) u32 else [2]f32;

/// Where a row's maximum starts: finite, so that no difference of two maxima is NaN.
pub const lowest: f32 = -std.math.floatMax(f32);

/// A row's maximum follows only when a score exceeds it by this much (log2), so that sums are
/// rarely rescaled; weights stay below 2^slack.
const slack_log2: f32 = 8;

/// The softmax's constants: `log2` is scale * log2(e), `slack` the same slack in units of raw
/// scores.
pub const Scale = struct {
    log2: f32,
    slack: f32,

    pub fn init(scale: f32) Scale {
        const log2 = scale * std.math.log2e;
        return .{ .log2 = log2, .slack = slack_log2 / log2 };
    }
};

/// 64 tokens in the cache's layout.
pub const Tile = struct {
    k: [*]const u16,
    v: [*]const u16,
    /// position of the first token
    start: u32,
    /// Where to prefetch into the second-level cache while the first and the second product run: a
    /// later tile's K and V.
    later_k: [*]const u16,
    later_v: [*]const u16,
    /// The part of that tile that is prefetched is 1 / 2^later_shift, so that register tiles share
    /// one tile out.
    later_shift: u5,
    /// The tokens of this tile that any row of the register tile sees, from its start. Nothing else
    /// is read: at the edges of a sparse view that is most of a tile.
    low: u32 = 0,
    high: u32 = layout.tile,
};

/// State of the rows of one register tile; row r's tokens are [low[r], high[r]).
pub fn Rows(comptime d: usize) type {
    return struct {
        /// (d / 2, rows)
        q: [*]const Operand,
        low: [*]const u32,
        high: [*]const u32,
        /// (rows) in units of raw scores
        max: [*]f32,
        /// (rows) sums of weights by lane
        sum: [*]F,
        /// (rows, d)
        acc: [*][d]f32,
    };
}

pub inline fn operand(low: u16, high: u16) Operand {
    if (simd.bf16_dot) return @as(u32, low) | @as(u32, high) << 16;
    return .{ simd.bf16ToF32(low), simd.bf16ToF32(high) };
}

inline fn splatOperand(x: Operand) simd.PairSplat {
    if (simd.bf16_dot) return simd.splatPair(x);
    return .{ .low = simd.splat(x[0]), .high = simd.splat(x[1]) };
}

/// 2^x for x up to a few dozen; exactly 0 below -126 and for NaN. Degree-4 minimax polynomial on
/// [-1/2, 1/2], relative error under 5e-6: far below the bf16 step of the weights. The integer part
/// is read from the low bits of x + 1.5 * 2^23 and added to the exponent.
pub inline fn exp2(x: F) F {
    const magic = simd.splat(0x1.8p23);
    const shifted = x + magic;
    const f = x - (shifted - magic);
    var p = simd.mulAdd(f, simd.splat(9.58285e-3), simd.splat(5.590642e-2));
    p = simd.mulAdd(p, f, simd.splat(2.4024099e-1));
    p = simd.mulAdd(p, f, simd.splat(6.9312419e-1));
    p = simd.mulAdd(p, f, simd.splat(1));
    const exponent = @as(U, @bitCast(shifted)) << @as(@Vector(W, u5), @splat(23));
    const power = @as(U, @bitCast(p)) +% exponent;
    return @bitCast(@select(u32, x >= simd.splat(-126), power, @as(U, @splat(0))));
}

/// Attends `rows` query rows to one tile.
pub fn step(
    comptime d: usize,
    comptime rows: usize,
    tile: *const Tile,
    state: *const Rows(d),
    scale: *const Scale,
) void {
    @setEvalBranchQuota(unrolled_quota);
    var scores: [rows][score_vectors]F = undefined;
    if (tile.high - tile.low > layout.tile - W) {
        scoreTile(d, rows, tile, state.q, &scores);
    } else {
        scorePart(d, rows, tile, state.q, &scores);
    }
    var weights: [rows][layout.tile / 2]Operand align(64) = undefined;
    for (0..rows) |r| softmaxRow(d, tile.start, &scores[r], state, r, scale, &weights[r]);
    accumulate(d, rows, tile, &weights, state.acc);
}

/// scores[r][token] = q[r] . k[token]
pub inline fn scoreTile(
    comptime d: usize,
    comptime rows: usize,
    tile: *const Tile,
    q: [*]const Operand,
    scores: *[rows][score_vectors]F,
) void {
    for (0..score_vectors / pass_vectors) |pass| {
        const first = pass * pass_vectors;
        var sums: [rows][pass_vectors]F = @splat(@splat(simd.splat(0)));
        for (0..d / 2) |pair| {
            var k: [pass_vectors]U = undefined;
            const row = tile.k + pair * 2 * layout.tile + first * 2 * W;
            inline for (0..pass_vectors) |j| k[j] = simd.loadPairs(row + j * 2 * W);
            prefetch(tile.later_k, pass * (d / 2) + pair, 4 * W * pass_vectors, tile.later_shift);
            inline for (0..rows) |r| {
                const x = splatOperand(q[pair * rows + r]);
                inline for (0..pass_vectors) |j| sums[r][j] = simd.dotPairs(sums[r][j], k[j], x);
            }
        }
        inline for (0..rows) |r| {
            inline for (0..pass_vectors) |j| scores[r][first + j] = sums[r][j];
        }
    }
}

/// The same for a tile of which only some vectors of tokens are seen; the others' scores stay 0 and
/// are masked later, as they are outside of every row's range.
noinline fn scorePart(
    comptime d: usize,
    comptime rows: usize,
    tile: *const Tile,
    q: [*]const Operand,
    scores: *[rows][score_vectors]F,
) void {
    const first = tile.low / W;
    const end = (tile.high + W - 1) / W;
    scores.* = @splat(@splat(simd.splat(0)));
    for (first..end) |j| {
        var sums: [rows]F = @splat(simd.splat(0));
        for (0..d / 2) |pair| {
            const k = simd.loadPairs(tile.k + pair * 2 * layout.tile + j * 2 * W);
            if (j == first) prefetch(tile.later_k, pair, 4 * layout.tile, tile.later_shift);
            inline for (0..rows) |r| {
                sums[r] = simd.dotPairs(sums[r], k, splatOperand(q[pair * rows + r]));
            }
        }
        inline for (0..rows) |r| scores[r][j] = sums[r];
    }
}

/// Turns row r's scores into weights, moving its maximum (and rescaling its sums) where the tile
/// exceeds it.
fn softmaxRow(
    comptime d: usize,
    start: u32,
    scores: *[score_vectors]F,
    state: *const Rows(d),
    r: usize,
    scale: *const Scale,
    weights: *[layout.tile / 2]Operand,
) void {
    if (state.low[r] > start or state.high[r] < start + layout.tile) {
        maskScores(scores, start, state.low[r], state.high[r]);
    }
    const before = state.max[r];
    const max = raisedMaximum(scores, before, scale);
    if (max > before) {
        const factor = exp2(simd.splat((before - max) * scale.log2));
        state.max[r] = max;
        state.sum[r] *= factor;
        rescale(&state.acc[r], factor);
    }
    var sums: [2]F = .{ state.sum[r], simd.splat(0) };
    inline for (0..score_vectors / 2) |j| {
        const first = weight(scores[2 * j], max, scale);
        const second = weight(scores[2 * j + 1], max, scale);
        sums[0] += first;
        sums[1] += second;
        storeWeights(weights[j * W ..].ptr, first, second);
    }
    state.sum[r] = sums[0] + sums[1];
}

noinline fn rescale(acc: []f32, factor: F) void {
    var i: usize = 0;
    while (i < acc.len) : (i += W) simd.storeF(acc[i..].ptr, simd.loadF(acc[i..].ptr) * factor);
}

/// Scores outside of [low, high) become -infinity, whose weight is exactly 0.
pub noinline fn maskScores(scores: *[score_vectors]F, start: u32, low: u32, high: u32) void {
    const lane = std.simd.iota(u32, W);
    const hidden = simd.splat(-std.math.inf(f32));
    inline for (0..score_vectors) |j| {
        const token = lane + @as(U, @splat(start + @as(u32, j * W)));
        const above = @select(f32, token >= @as(U, @splat(low)), scores[j], hidden);
        scores[j] = @select(f32, token < @as(U, @splat(high)), above, hidden);
    }
}

/// A row's maximum moved to that of the tile, where some score exceeds it by more than the slack.
pub inline fn raisedMaximum(scores: *const [score_vectors]F, max: f32, scale: *const Scale) f32 {
    var top = scores[0];
    inline for (1..score_vectors) |j| top = larger(top, scores[j]);
    return if (@reduce(.Or, top > simd.splat(max + scale.slack))) largestLane(top) else max;
}

/// One instruction, where @max would order NaNs too.
inline fn larger(a: F, b: F) F {
    return @select(f32, a > b, a, b);
}

fn largestLane(x: F) f32 {
    const lanes: [W]f32 = x;
    var result = lanes[0];
    for (lanes[1..]) |lane| {
        if (lane > result) result = lane;
    }
    return result;
}

/// A score's softmax weight relative to a maximum.
pub inline fn weight(score: F, max: f32, scale: *const Scale) F {
    return exp2(simd.mulAdd(score, simd.splat(scale.log2), simd.splat(-max * scale.log2)));
}

/// Rounds the weights of 2 W neighbouring tokens to bf16.
inline fn storeWeights(out: [*]Operand, first: F, second: F) void {
    if (simd.bf16_dot) {
        @as(*U, @ptrCast(@alignCast(out))).* = simd.packPairs(first, second);
        return;
    }
    const upper: U = @splat(0xffff_0000);
    const p: [*]f32 = @ptrCast(out);
    simd.storeF(p, @bitCast(simd.roundBits(first) & upper));
    simd.storeF(p + W, @bitCast(simd.roundBits(second) & upper));
}

/// acc[r][i] += sum over the tile's tokens of weights[r][token] * v[token][i]
inline fn accumulate(
    comptime d: usize,
    comptime rows: usize,
    tile: *const Tile,
    weights: *const [rows][layout.tile / 2]Operand,
    acc: [*][d]f32,
) void {
    const vectors = comptime divisorUpTo(d / W, pass_vectors);
    for (0..d / W / vectors) |pass| {
        const first = pass * vectors * W;
        var sums: [rows][vectors]F = undefined;
        inline for (0..rows) |r| {
            inline for (0..vectors) |j| sums[r][j] = simd.loadF(acc[r][first + j * W ..].ptr);
        }
        // Pairs outside of every row's range have weight 0, which would add nothing.
        for (tile.low / 2..(tile.high + 1) / 2) |pair| {
            var v: [vectors]U = undefined;
            const row = tile.v + pair * 2 * d + first * 2;
            inline for (0..vectors) |j| v[j] = simd.loadPairs(row + j * 2 * W);
            const iteration = pass * (layout.tile / 2) + pair;
            prefetch(tile.later_v, iteration, 4 * W * vectors, tile.later_shift);
            inline for (0..rows) |r| {
                const x = splatOperand(weights[r][pair]);
                inline for (0..vectors) |j| sums[r][j] = simd.dotPairs(sums[r][j], v[j], x);
            }
        }
        inline for (0..rows) |r| {
            inline for (0..vectors) |j| simd.storeF(acc[r][first + j * W ..].ptr, sums[r][j]);
        }
    }
}

/// Prefetches an iteration's share of a tile, of which it reads `bytes` itself. Into the second
/// level, because the first holds hardly more than the tile in use.
inline fn prefetch(base: [*]const u16, iteration: usize, comptime bytes: usize, shift: u5) void {
    const p = @as([*]const u8, @ptrCast(base)) + (iteration * bytes >> shift);
    comptime var line = 0;
    inline while (line < bytes) : (line += 64) @prefetch(p + line, .{ .locality = 2 });
}

fn divisorUpTo(n: usize, limit: usize) usize {
    var i = limit;
    while (n % i != 0) i -= 1;
    return i;
}

/// Sum of the lanes, halves onto halves.
pub inline fn sumLanes(x: F) f32 {
    var values: [W]f32 = x;
    comptime var half = W / 2;
    inline while (half > 0) : (half /= 2) {
        inline for (0..half) |i| values[i] += values[i + half];
    }
    return values[0];
}

test "exp2 of the softmax" {
    for (0..4000) |i| {
        const x = 9 - 0.03 * @as(f32, @floatFromInt(i));
        const y: [W]f32 = exp2(simd.splat(x));
        const want: f32 = if (x < -126) 0 else @exp2(x);
        try std.testing.expectApproxEqRel(want, y[0], 8e-6);
    }
    for ([_]f32{ -126.5, -1e9, -std.math.inf(f32), std.math.nan(f32) }) |x| {
        const y: [W]f32 = exp2(simd.splat(x));
        try std.testing.expectEqual(@as(f32, 0), y[0]);
    }
}
