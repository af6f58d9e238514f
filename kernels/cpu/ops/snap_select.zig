//! SnapKV's selection: scores pooled along the tokens, the exact top of them for each KV head,
//! ascending.
const std = @import("std");
const types = @import("../../abi/types.zig");
const kernel_mod = @import("../kernel.zig");

const Desc = types.SnapSelectDesc;

pub const snap_select: kernel_mod.Kernel = kernel_mod.kernel(Desc, &.{Heads});

/// Digits of the radix search, from the top: 11 + 11 + 10 bits.
const digits = [_]struct { shift: u5, bits: u5 }{
    .{ .shift = 21, .bits = 11 },
    .{ .shift = 10, .bits = 11 },
    .{ .shift = 0, .bits = 10 },
};

/// One item a (sequence, KV head). Items of KV head 0 also write the sequence's prefix_len and
/// tail_start.
const Heads = struct {
    pub fn plan(desc: *Desc, _: u32) u32 {
        return desc.scores.shape[0] * desc.scores.shape[1];
    }

    pub fn run(desc: *const Desc, item: u32, scratch: *const kernel_mod.Scratch) void {
        const kv_heads = desc.scores.shape[1];
        const s = item / kv_heads;
        const length: u32 = @intCast(@max(kernel_mod.pointer(i32, desc.lens)[s], 0));
        const selects = length > desc.budget;
        const context = length -| desc.window;
        const count = if (selects) @min(desc.budget - desc.window, context) else 0;
        if (item % kv_heads == 0) {
            kernel_mod.pointer(i32, desc.prefix_len)[s] = @intCast(count);
            kernel_mod.pointer(i32, desc.tail_start)[s] = if (selects) @intCast(context) else 0;
        }
        if (count == 0) return;
        const offset = @as(usize, item) * desc.scores.shape[2];
        const scores = kernel_mod.pointer(f32, desc.scores)[offset..][0..context];
        const pooled = kernel_mod.pointer(f32, desc.pooled)[offset..][0..context];
        pool(scores, desc.kernel, desc.pooling, pooled);
        const histogram: *[1 << 11]u32 = @ptrCast(scratch.data);
        const list = @as(usize, item) * desc.indices.shape[2];
        selectTop(pooled, kernel_mod.pointer(i32, desc.indices)[list..][0..count], histogram);
    }
};

/// out[i] = average or maximum of scores[i - kernel / 2 .. i + kernel / 2]; neighbours outside of
/// the scores do not count, neither in the sum nor in what it is divided by.
fn pool(scores: []const f32, kernel: u32, pooling: types.Pooling, out: []f32) void {
    const half = kernel / 2;
    for (out, 0..) |*result, i| {
        const neighbours = scores[i -| half..@min(i + half + 1, scores.len)];
        var value = neighbours[0];
        switch (pooling) {
            .average => {
                for (neighbours[1..]) |x| value += x;
                value /= @floatFromInt(neighbours.len);
            },
            .max => for (neighbours[1..]) |x| {
                value = @max(value, x);
            },
        }
        result.* = value;
    }
}

/// Writes the places of the `out.len` largest values, ascending; of equal values the earlier ones.
/// Three counting passes over the bits find the smallest value kept, exactly.
fn selectTop(values: []const f32, out: []i32, histogram: *[1 << 11]u32) void {
    var threshold: u32 = 0;
    var known: u32 = 0;
    var wanted: u32 = @intCast(out.len);
    for (digits) |digit| {
        const mask = (@as(u32, 1) << digit.bits) - 1;
        @memset(histogram, 0);
        for (values) |value| {
            const bits = ordered(value);
            if (bits & known == threshold) histogram[bits >> digit.shift & mask] += 1;
        }
        var bucket = mask;
        while (histogram[bucket] < wanted) : (bucket -= 1) wanted -= histogram[bucket];
        threshold |= bucket << digit.shift;
        known |= mask << digit.shift;
    }
    var written: usize = 0;
    for (values, 0..) |value, i| {
        const bits = ordered(value);
        if (bits < threshold) continue;
        if (bits == threshold) {
            if (wanted == 0) continue;
            wanted -= 1;
        }
        out[written] = @intCast(i);
        written += 1;
    }
}

/// Bits whose unsigned order is the values' order (-0 as 0, NaN above all).
fn ordered(value: f32) u32 {
    const bits: u32 = @bitCast(value + 0);
    return if (bits >> 31 == 1) ~bits else bits | 0x8000_0000;
}
