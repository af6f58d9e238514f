//! The vector primitives of one CPU level. This file is compiled once per level (build.zig); `W`
//! and the bf16 dot product follow the target's features, everything above is written once against
//! these.
const std = @import("std");
const builtin = @import("builtin");

pub const is_x86 = builtin.cpu.arch == .x86_64;

fn x86Has(comptime feature: std.Target.x86.Feature) bool {
    return is_x86 and std.Target.x86.featureSetHas(builtin.cpu.features, feature);
}

/// f32 lanes of one vector register.
pub const W: comptime_int = if (x86Has(.avx512f)) 16 else if (x86Has(.avx2)) 8 else 4;

/// Whether vdpbf16ps is used: two bf16 products a lane are added to an f32 in one instruction.
pub const bf16_dot: bool = x86Has(.avx512bf16) and W == 16;

pub const F = @Vector(W, f32);
pub const U = @Vector(W, u32);
pub const I = @Vector(W, i32);

/// Whether multiply-add is one instruction; without it @mulAdd would be a call into soft-float
/// code.
pub const has_fma: bool = !is_x86 or x86Has(.fma);

pub inline fn mulAdd(a: F, b: F, c: F) F {
    return if (has_fma) @mulAdd(F, a, b, c) else a * b + c;
}

pub inline fn splat(x: f32) F {
    return @splat(x);
}

pub inline fn loadF(p: [*]const f32) F {
    return @as(*align(4) const F, @ptrCast(p)).*;
}

pub inline fn storeF(p: [*]f32, x: F) void {
    @as(*align(4) F, @ptrCast(p)).* = x;
}

/// W pairs of bf16 (2 W elements), each pair in one u32 lane, first element in the low half.
pub inline fn loadPairs(p: [*]const u16) U {
    return @as(*align(2) const U, @ptrCast(p)).*;
}

pub inline fn storePairs(p: [*]u16, x: U) void {
    @as(*align(2) U, @ptrCast(p)).* = x;
}

pub inline fn lowHalves(x: U) F {
    return @bitCast(x << @as(@Vector(W, u5), @splat(16)));
}

pub inline fn highHalves(x: U) F {
    return @bitCast(x & @as(U, @splat(0xffff_0000)));
}

/// W consecutive bf16 as f32.
pub inline fn loadBf16(p: [*]const u16) F {
    const raw = @as(*align(2) const @Vector(W, u16), @ptrCast(p)).*;
    return @bitCast(@as(U, raw) << @as(@Vector(W, u5), @splat(16)));
}

/// W f32 rounded to nearest even and stored as bf16.
pub inline fn storeBf16(p: [*]u16, x: F) void {
    const high = roundBits(x) >> @as(@Vector(W, u5), @splat(16));
    @as(*align(2) @Vector(W, u16), @ptrCast(p)).* = @truncate(high);
}

/// The first `count` < W bf16, the other lanes 0.
pub inline fn loadBf16Partial(p: [*]const u16, count: usize) F {
    var buffer: [W]u16 = @splat(0);
    @memcpy(buffer[0..count], p[0..count]);
    return loadBf16(&buffer);
}

/// Stores the first `count` < W lanes as bf16.
pub inline fn storeBf16Partial(p: [*]u16, x: F, count: usize) void {
    var buffer: [W]u16 = undefined;
    storeBf16(&buffer, x);
    @memcpy(p[0..count], buffer[0..count]);
}

/// The f32 bits with the upper half rounded to nearest even; NaN stays NaN.
pub inline fn roundBits(x: F) U {
    const bits: U = @bitCast(x);
    const lsb = (bits >> @as(@Vector(W, u5), @splat(16))) & @as(U, @splat(1));
    const rounded = bits +% @as(U, @splat(0x7fff)) +% lsb;
    return @select(u32, x != x, bits | @as(U, @splat(0x0040_0000)), rounded);
}

/// Two vectors that hold elements 0 .. W and W .. 2W as 2 W bf16 in element order, as pairs.
pub inline fn packPairs(first: F, second: F) U {
    if (bf16_dot) {
        return asm ("vcvtne2ps2bf16 %[low], %[high], %[out]"
            : [out] "=v" (-> U),
            : [low] "v" (first),
              [high] "v" (second),
        );
    }
    const a: @Vector(W, u16) = @truncate(roundBits(first) >> @as(@Vector(W, u5), @splat(16)));
    const b: @Vector(W, u16) = @truncate(roundBits(second) >> @as(@Vector(W, u5), @splat(16)));
    return @bitCast(std.simd.join(a, b));
}

/// One pair of bf16 ready to meet every lane.
pub const PairSplat = if (bf16_dot) U else struct { low: F, high: F };

pub inline fn splatPair(pair: u32) PairSplat {
    if (bf16_dot) return @splat(pair);
    return .{ .low = @splat(@bitCast(pair << 16)), .high = @splat(@bitCast(pair & 0xffff_0000)) };
}

/// acc + a.low * b.low + a.high * b.high in every lane.
pub inline fn dotPairs(acc: F, a: U, b: PairSplat) F {
    if (bf16_dot) {
        return asm ("vdpbf16ps %[b], %[a], %[acc]"
            : [acc] "=v" (-> F),
            : [_] "0" (acc),
              [a] "v" (a),
              [b] "v" (b),
        );
    }
    return mulAdd(highHalves(a), b.high, mulAdd(lowHalves(a), b.low, acc));
}

/// 2^x for x <= 0 (clamped at -126): degree-5 polynomial, relative error under 3e-6; exactly 1 at
/// 0.
pub inline fn exp2(x: F) F {
    const clamped = @max(x, splat(-126));
    const n = @round(clamped);
    const f = clamped - n;
    var p = splat(1.3333558e-3);
    p = mulAdd(p, f, splat(9.6181291e-3));
    p = mulAdd(p, f, splat(5.5504109e-2));
    p = mulAdd(p, f, splat(2.4022651e-1));
    p = mulAdd(p, f, splat(6.9314718e-1));
    p = mulAdd(p, f, splat(1));
    const exponent: I = @intFromFloat(n);
    const power: F = @bitCast((exponent + @as(I, @splat(127))) << @as(@Vector(W, u5), @splat(23)));
    return p * power;
}

pub inline fn prefetch(p: anytype) void {
    @prefetch(p, .{ .rw = .read, .locality = 3, .cache = .data });
}

/// Into the second-level cache, for what is needed much later.
pub inline fn prefetchL2(p: anytype) void {
    @prefetch(p, .{ .rw = .read, .locality = 2, .cache = .data });
}

pub inline fn bf16ToF32(x: u16) f32 {
    return @bitCast(@as(u32, x) << 16);
}

pub inline fn f32ToBf16(x: f32) u16 {
    const bits: u32 = @bitCast(x);
    if (x != x) return @truncate((bits | 0x0040_0000) >> 16);
    return @truncate((bits +% 0x7fff +% ((bits >> 16) & 1)) >> 16);
}

test "bf16 pairs, dot and exp2 against plain arithmetic" {
    var prng = std.Random.DefaultPrng.init(7);
    const random = prng.random();
    var a: [2 * W]f32 = undefined;
    var bits: [2 * W]u16 = undefined;
    for (&a, &bits) |*x, *h| {
        x.* = random.floatNorm(f32);
        h.* = f32ToBf16(x.*);
    }
    const pairs = packPairs(loadF(&a), loadF(a[W..].ptr));
    var stored: [2 * W]u16 = undefined;
    storePairs(&stored, pairs);
    try std.testing.expectEqualSlices(u16, &bits, &stored);
    const q: u32 = @as(u32, f32ToBf16(0.5)) | @as(u32, f32ToBf16(-2)) << 16;
    const acc: [W]f32 = dotPairs(splat(1), pairs, splatPair(q));
    for (0..W) |i| {
        const want = 1 + 0.5 * bf16ToF32(bits[2 * i]) - 2 * bf16ToF32(bits[2 * i + 1]);
        try std.testing.expectApproxEqAbs(want, acc[i], 1e-5);
    }
    for (0..2000) |i| {
        const x = -0.06 * @as(f32, @floatFromInt(i));
        const y: [W]f32 = exp2(splat(x));
        try std.testing.expectApproxEqRel(@exp2(x), y[0], 4e-6);
    }
    const one: [W]f32 = exp2(splat(0));
    try std.testing.expectEqual(@as(f32, 1), one[0]);
}
