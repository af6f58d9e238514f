//! What this machine can do: one thread's share of a read, bf16 dot product or FMA measurement.
const std = @import("std");
const types = @import("../../abi/types.zig");
const simd = @import("../simd.zig");

/// Independent accumulators: more than latency x throughput of the instruction, and they fit the
/// registers.
const chains = if (simd.W == 16 or !simd.is_x86) 24 else 12;

/// Steps of a round of the arithmetic probes.
const round_steps = 4096;

/// Work for one thread. read_bandwidth: reads `bytes` at `data` `rounds` times and returns the
/// bytes read. dot_peak and fma_peak: `rounds` rounds of register-only work; returns the FLOPs
/// done. `sink` takes a value that depends on all of it.
pub fn probe(
    kind: types.ProbeKind,
    data: [*]const u8,
    bytes: usize,
    rounds: u32,
    sink: *f32,
) callconv(.c) f64 {
    return switch (kind) {
        .read_bandwidth => readAll(data, bytes, rounds, sink),
        .dot_peak => arithmetic(4, dotStep, rounds, sink),
        .fma_peak => arithmetic(2, fmaStep, rounds, sink),
    };
}

fn readAll(data: [*]const u8, bytes: usize, rounds: u32, sink: *f32) f64 {
    const vector_bytes = simd.W * 4;
    const step = 8 * vector_bytes;
    const steps = bytes / step;
    var sums: [8]simd.U = @splat(@splat(0));
    for (0..rounds) |_| {
        for (0..steps) |i| {
            const at = data + i * step;
            inline for (&sums, 0..) |*sum, j| {
                simd.prefetch(at + 4096 + j * vector_bytes);
                sum.* +%= @as(*align(1) const simd.U, @ptrCast(at + j * vector_bytes)).*;
            }
        }
    }
    var total: simd.U = @splat(0);
    for (sums) |sum| total +%= sum;
    sink.* = @floatFromInt(@reduce(.Add, total) & 0xffff);
    return @as(f64, @floatFromInt(steps * step)) * @as(f64, @floatFromInt(rounds));
}

const Step = fn (acc: simd.F, a: simd.U, b: u32) callconv(.@"inline") simd.F;

inline fn dotStep(acc: simd.F, a: simd.U, b: u32) simd.F {
    return simd.dotPairs(acc, a, simd.splatPair(b));
}

inline fn fmaStep(acc: simd.F, a: simd.U, b: u32) simd.F {
    return simd.mulAdd(@bitCast(a), simd.splat(@bitCast(b)), acc);
}

fn arithmetic(comptime flops_per_lane: f64, comptime step: Step, rounds: u32, sink: *f32) f64 {
    var accumulators: [chains]simd.F = @splat(simd.splat(0));
    // Read through the sink, so that the compiler knows neither operand.
    const bits: u32 = @bitCast(sink.*);
    const a: simd.U = @splat(bits);
    for (0..rounds) |_| {
        for (0..round_steps) |_| {
            inline for (&accumulators) |*acc| acc.* = step(acc.*, a, bits);
        }
    }
    var total = simd.splat(0);
    for (accumulators) |acc| total += acc;
    sink.* = @reduce(.Add, total);
    const steps = @as(f64, @floatFromInt(rounds)) * round_steps * chains;
    return steps * simd.W * flops_per_lane;
}

test "probes count their work" {
    var memory: [64 * 1024]u8 align(64) = @splat(1);
    var sink: f32 = 0.5;
    const lanes = round_steps * chains * simd.W;
    const read = probe(.read_bandwidth, &memory, memory.len, 3, &sink);
    try std.testing.expectEqual(3 * memory.len, read);
    try std.testing.expectEqual(2 * lanes * 4, probe(.dot_peak, &memory, 0, 2, &sink));
    try std.testing.expectEqual(1 * lanes * 2, probe(.fma_peak, &memory, 0, 1, &sink));
}
