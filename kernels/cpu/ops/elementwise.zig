//! silu_mul, add and cast: one pass over contiguous bf16 or f32 arrays.
const std = @import("std");
const types = @import("../../abi/types.zig");
const kernel_mod = @import("../kernel.zig");
const simd = @import("../simd.zig");

const W = simd.W;
const F = simd.F;

/// Elements of one item: a few microseconds of work, far more than claiming it costs.
const item_elements: u64 = 16 * 1024;

pub const silu_mul = kernel_mod.kernel(types.SiluMulDesc, &.{SiluMul});
pub const add = kernel_mod.kernel(types.AddDesc, &.{Add});
pub const cast = kernel_mod.kernel(types.CastDesc, &.{Cast});

/// x * sigmoid(x). The exponential only ever sees values <= 0, so nothing overflows.
pub inline fn silu(x: F) F {
    const e = simd.exp2(@abs(x) * simd.splat(-std.math.log2e));
    const numerator = @select(f32, x < simd.splat(0), e, simd.splat(1));
    return x * (numerator / (simd.splat(1) + e));
}

fn elements(tensor: types.Tensor) u64 {
    var product: u64 = 1;
    for (tensor.shape[0..tensor.rank]) |extent| product *= extent;
    return product;
}

fn itemCount(total: u64) u32 {
    return @intCast(std.math.divCeil(u64, total, item_elements) catch unreachable);
}

/// The elements [start, end) of one item.
const Span = struct {
    start: usize,
    end: usize,

    fn of(total: u64, item: u32) Span {
        const start = @as(u64, item) * item_elements;
        return .{ .start = @intCast(start), .end = @intCast(@min(total, start + item_elements)) };
    }
};

const SiluMul = struct {
    pub fn plan(desc: *types.SiluMulDesc, _: u32) u32 {
        return itemCount(elements(desc.out));
    }

    pub fn run(desc: *const types.SiluMulDesc, item: u32, _: *const kernel_mod.Scratch) void {
        const n: usize = desc.out.shape[desc.out.rank - 1];
        const gate_up = kernel_mod.pointer(u16, desc.gate_up);
        const out = kernel_mod.pointer(u16, desc.out);
        const span: Span = .of(elements(desc.out), item);
        var i = span.start;
        while (i < span.end) {
            const row = i / n;
            const row_end = @min(span.end, (row + 1) * n);
            const gate = gate_up + i + row * n;
            siluMulRow(gate, gate + n, out + i, row_end - i);
            i = row_end;
        }
    }

    fn siluMulRow(gate: [*]const u16, up: [*]const u16, out: [*]u16, count: usize) void {
        var i: usize = 0;
        while (i + W <= count) : (i += W) {
            simd.storeBf16(out + i, silu(simd.loadBf16(gate + i)) * simd.loadBf16(up + i));
        }
        if (i == count) return;
        const g = simd.loadBf16Partial(gate + i, count - i);
        const u = simd.loadBf16Partial(up + i, count - i);
        simd.storeBf16Partial(out + i, silu(g) * u, count - i);
    }
};

const Add = struct {
    pub fn plan(desc: *types.AddDesc, _: u32) u32 {
        return itemCount(elements(desc.out));
    }

    pub fn run(desc: *const types.AddDesc, item: u32, _: *const kernel_mod.Scratch) void {
        const a = kernel_mod.pointer(u16, desc.a);
        const b = kernel_mod.pointer(u16, desc.b);
        const out = kernel_mod.pointer(u16, desc.out);
        const span: Span = .of(elements(desc.out), item);
        var i = span.start;
        while (i + W <= span.end) : (i += W) {
            simd.storeBf16(out + i, simd.loadBf16(a + i) + simd.loadBf16(b + i));
        }
        while (i < span.end) : (i += 1) {
            out[i] = simd.f32ToBf16(simd.bf16ToF32(a[i]) + simd.bf16ToF32(b[i]));
        }
    }
};

const Cast = struct {
    pub fn plan(desc: *types.CastDesc, _: u32) u32 {
        return itemCount(elements(desc.out));
    }

    pub fn run(desc: *const types.CastDesc, item: u32, _: *const kernel_mod.Scratch) void {
        const span: Span = .of(elements(desc.out), item);
        if (desc.out.dtype == .bf16) {
            narrow(kernel_mod.pointer(f32, desc.source), kernel_mod.pointer(u16, desc.out), span);
        } else {
            widen(kernel_mod.pointer(u16, desc.source), kernel_mod.pointer(f32, desc.out), span);
        }
    }

    fn narrow(source: [*]const f32, out: [*]u16, span: Span) void {
        var i = span.start;
        while (i + W <= span.end) : (i += W) simd.storeBf16(out + i, simd.loadF(source + i));
        while (i < span.end) : (i += 1) out[i] = simd.f32ToBf16(source[i]);
    }

    fn widen(source: [*]const u16, out: [*]f32, span: Span) void {
        var i = span.start;
        while (i + W <= span.end) : (i += W) simd.storeF(out + i, simd.loadBf16(source + i));
        while (i < span.end) : (i += 1) out[i] = simd.bf16ToF32(source[i]);
    }
};

const testing = @import("../testing.zig");
const reference = @import("../../tests/reference_dense.zig");

test "silu_mul against f64; an element's bits depend on nothing but itself" {
    const gpa = std.testing.allocator;
    var prng = std.Random.DefaultPrng.init(std.testing.random_seed);
    for ([_][2]u32{ .{ 1, 1 }, .{ 3, 17 }, .{ 2, 64 }, .{ 41, 1000 }, .{ 1, 40000 } }) |shape| {
        const rows, const n = shape;
        const gate_up = try testing.randomBf16(prng.random(), rows * 2 * n, 6);
        defer gpa.free(gate_up);
        gate_up[0] = simd.f32ToBf16(-200);
        const out = try gpa.alloc(u16, rows * n);
        defer gpa.free(out);
        try testing.run(silu_mul, &types.SiluMulDesc{
            .gate_up = testing.tensor(gate_up, &.{ rows, 2 * n }),
            .out = testing.tensor(out, &.{ rows, n }),
        }, 2);
        const want = try gpa.alloc(f64, rows * n);
        defer gpa.free(want);
        for (want, 0..) |*value, i| {
            const gate = i / n * 2 * n + i % n;
            const up = reference.fromBf16(gate_up[gate + n]);
            value.* = reference.silu(reference.fromBf16(gate_up[gate])) * up;
            var alone: [1]u16 = undefined;
            try testing.run(silu_mul, &types.SiluMulDesc{
                .gate_up = testing.tensor(&[_]u16{ gate_up[gate], gate_up[gate + n] }, &.{ 1, 2 }),
                .out = testing.tensor(&alone, &.{ 1, 1 }),
            }, 1);
            try std.testing.expectEqual(alone[0], out[i]);
            if (i == 300) break;
        }
        const checked = @min(want.len, 300);
        try testing.expectClose(want[0..checked], out[0..checked], 4.1e-3, 1e-30);
    }
}

test "add rounds once, in place or not" {
    const gpa = std.testing.allocator;
    var prng = std.Random.DefaultPrng.init(std.testing.random_seed);
    for ([_]u32{ 1, 15, 16, 17, 50001 }) |n| {
        const a = try testing.randomBf16(prng.random(), n, 1);
        defer gpa.free(a);
        const b = try testing.randomBf16(prng.random(), n, 1);
        defer gpa.free(b);
        const want = try gpa.alloc(u16, n);
        defer gpa.free(want);
        for (want, a, b) |*w, x, y| w.* = simd.f32ToBf16(simd.bf16ToF32(x) + simd.bf16ToF32(y));
        const desc: types.AddDesc = .{
            .a = testing.tensor(a, &.{n}),
            .b = testing.tensor(b, &.{n}),
            .out = testing.tensor(b, &.{n}),
        };
        try testing.run(add, &desc, 2);
        try std.testing.expectEqualSlices(u16, want, b);
    }
}

test "cast there and back" {
    const gpa = std.testing.allocator;
    var prng = std.Random.DefaultPrng.init(std.testing.random_seed);
    for ([_]u32{ 1, 15, 16, 17, 50001 }) |n| {
        const bits = try testing.randomBf16(prng.random(), n, 1);
        defer gpa.free(bits);
        bits[0] = 0x7f80;
        const wide = try gpa.alloc(f32, n);
        defer gpa.free(wide);
        const narrow_tensor = testing.tensor(bits, &.{n});
        const wide_tensor = testing.tensor(wide, &.{n});
        try testing.run(cast, &types.CastDesc{ .source = narrow_tensor, .out = wide_tensor }, 2);
        for (bits, wide) |b, w| try std.testing.expectEqual(simd.bf16ToF32(b), w);
        for (wide) |*w| w.* *= 1.0009;
        try testing.run(cast, &types.CastDesc{ .source = wide_tensor, .out = narrow_tensor }, 2);
        for (wide, bits) |w, b| try std.testing.expectEqual(simd.f32ToBf16(w), b);
    }
}
