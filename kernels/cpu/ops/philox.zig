//! Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3, SC
//! 2011), and how MagicDec numbers its noise.
//!
//! Every draw is a function of (seed, stream, sequence, position, vocabulary entry) and of nothing
//! else, so it is the same on any thread, in any batch and on any backend. The convention, which a
//! backend must keep to draw the same tokens:
//!   key       (seed_low, seed_high)
//!   counter   (c, position of the drawn token, sequence, stream)
//!   entry i   takes word (i / 16) % 4 of the counter with c = 16 * (i / 64) + i % 16
//! so a run of 64 entries is 16 counters whose words are contiguous sixteens: no transposition with
//! 4, 8 or 16 lanes, coalesced on a GPU. A draw that has no vocabulary entry (the accept test) is
//! entry 0.
const std = @import("std");
const types = @import("../../abi/types.zig");
const simd = @import("../simd.zig");

const W = simd.W;
const U = simd.U;

/// Vocabulary entries that 16 counters cover.
pub const run_entries = 64;
const run_counters = 16;

const multipliers = [2]u32{ 0xd251_1f53, 0xcd9e_8d57 };
const weyl = [2]u32{ 0x9e37_79b9, 0xbb67_ae85 };
const rounds = 10;

/// What keys the noise of one token.
pub const Noise = struct {
    key: [2]u32,
    position: u32,
    sequence: u32,
    stream: u32,

    /// `position` is the drawn token's own.
    pub fn init(
        params: *const types.SamplingParams,
        stream: types.NoiseStream,
        position: i32,
    ) Noise {
        return .{
            .key = .{ params.seed_low, params.seed_high },
            .position = @bitCast(position),
            .sequence = params.sequence,
            .stream = @intFromEnum(stream),
        };
    }

    /// Words of W entries each: element j belongs to entries first + 16 j + lane, where `first` is
    /// 64 n + m, m < 16 a multiple of W.
    pub inline fn words(self: *const Noise, first: u32) [4]U {
        const c = first / run_entries * run_counters + first % run_counters;
        const counters = @as(U, @splat(c)) + std.simd.iota(u32, W);
        return vector(.{
            counters,
            @splat(self.position),
            @splat(self.sequence),
            @splat(self.stream),
        }, self.key);
    }

    /// The word of a draw that has no vocabulary entry.
    pub fn word(self: *const Noise) u32 {
        return scalar(.{ 0, self.position, self.sequence, self.stream }, self.key)[0];
    }
};

pub fn scalar(counter: [4]u32, key: [2]u32) [4]u32 {
    var c = counter;
    var k = key;
    for (0..rounds) |_| {
        const p0 = @as(u64, multipliers[0]) * c[0];
        const p1 = @as(u64, multipliers[1]) * c[2];
        c = .{
            high(p1) ^ c[1] ^ k[0],
            @truncate(p1),
            high(p0) ^ c[3] ^ k[1],
            @truncate(p0),
        };
        k = .{ k[0] +% weyl[0], k[1] +% weyl[1] };
    }
    return c;
}

inline fn high(x: u64) u32 {
    return @truncate(x >> 32);
}

/// One counter a lane.
pub inline fn vector(counter: [4]U, key: [2]u32) [4]U {
    var c = counter;
    var k = key;
    inline for (0..rounds) |_| {
        const p0 = product(c[0], multipliers[0]);
        const p1 = product(c[2], multipliers[1]);
        c = .{
            p1.high ^ c[1] ^ @as(U, @splat(k[0])),
            p1.low,
            p0.high ^ c[3] ^ @as(U, @splat(k[1])),
            p0.low,
        };
        k = .{ k[0] +% weyl[0], k[1] +% weyl[1] };
    }
    return c;
}

/// The 64-bit products of all lanes. Even and odd lanes are multiplied apart, as the 32 x 32 -> 64
/// instructions want them.
inline fn product(a: U, m: u32) struct { high: U, low: U } {
    const V64 = @Vector(W / 2, u64);
    const half: @Vector(W / 2, u6) = @splat(32);
    const low_mask: V64 = @splat(0xffff_ffff);
    const wide: V64 = @bitCast(a);
    const even = (wide & low_mask) * @as(V64, @splat(m));
    const odd = (wide >> half) * @as(V64, @splat(m));
    return .{
        .high = @bitCast((even >> half) | (odd & ~low_mask)),
        .low = @bitCast((even & low_mask) | (odd << half)),
    };
}

test "known answers of Random123 (kat_vectors, philox4x32 10)" {
    const pi = [_]u32{ 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0 };
    const cases = [_][3][4]u32{
        .{
            .{ 0, 0, 0, 0 },
            .{ 0, 0, 0, 0 },
            .{ 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 },
        },
        .{
            @splat(0xffff_ffff),
            @splat(0xffff_ffff),
            .{ 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd },
        },
        .{
            pi[0..4].*,
            .{ pi[4], pi[5], 0, 0 },
            .{ 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1 },
        },
    };
    for (cases) |case| {
        const counter = case[0];
        const key = case[1][0..2].*;
        try std.testing.expectEqual(case[2], scalar(counter, key));
        var lanes: [4]U = undefined;
        for (&lanes, counter) |*lane, x| lane.* = @splat(x);
        for (vector(lanes, key), case[2]) |got, want| {
            try std.testing.expect(@reduce(.And, got == @as(U, @splat(want))));
        }
    }
}

test "words of a run follow the convention entry by entry" {
    const params: types.SamplingParams = .{
        .temperature = 1,
        .top_p = 1,
        .min_p = 0,
        .top_k = 0,
        .seed_low = 0x1234_5678,
        .seed_high = 0x9abc_def0,
        .sequence = 5,
    };
    const noise: Noise = .init(&params, .recovery, 77);
    for ([_]u32{ 0, 64, 128_192 }) |run| {
        var m: u32 = 0;
        while (m < 16) : (m += W) {
            for (noise.words(run + m), 0..) |vector_words, j| {
                const got: [W]u32 = vector_words;
                for (got, 0..) |x, lane| {
                    const entry: u32 = @intCast(run + m + 16 * j + lane);
                    const c = 16 * (entry / 64) + entry % 16;
                    const want = scalar(.{ c, 77, 5, 3 }, .{ 0x1234_5678, 0x9abc_def0 });
                    try std.testing.expectEqual(want[(entry / 16) % 4], x);
                }
            }
        }
    }
    try std.testing.expectEqual(scalar(.{ 0, 77, 5, 3 }, noise.key)[0], noise.word());
}
