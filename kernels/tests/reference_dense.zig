//! The dense ops in plain f64, as the tests' reference. Arrays are row-major; bf16 inputs are u16
//! bits.
const std = @import("std");

pub fn fromBf16(x: u16) f64 {
    return @as(f32, @bitCast(@as(u32, x) << 16));
}

pub fn silu(x: f64) f64 {
    return x / (1 + @exp(-x));
}

pub const Linear = struct {
    rows: usize,
    n: usize,
    k: usize,
    x: []const u16,
    /// (n, k)
    weight: []const u16,
    bias: ?[]const u16 = null,
    residual: ?[]const u16 = null,
    silu_mul: bool = false,

    /// (rows, n) or, with silu_mul, (rows, n / 2).
    pub fn at(self: Linear, row: usize, column: usize) f64 {
        const columns = if (self.silu_mul) self.n / 2 else self.n;
        var value = self.product(row, column);
        if (self.silu_mul) value = silu(value) * self.product(row, columns + column);
        if (self.residual) |residual| value += fromBf16(residual[row * columns + column]);
        return value;
    }

    fn product(self: Linear, row: usize, column: usize) f64 {
        var sum: f64 = if (self.bias) |bias| fromBf16(bias[column]) else 0;
        const x = self.x[row * self.k ..][0..self.k];
        const weight = self.weight[column * self.k ..][0..self.k];
        for (x, weight) |a, b| sum += fromBf16(a) * fromBf16(b);
        return sum;
    }
};

/// out = x rsqrt(mean(x^2) + eps) weight for one row.
pub fn rmsNorm(x: []const u16, weight: []const u16, eps: f64, out: []f64) void {
    var sum: f64 = 0;
    for (x) |value| sum += fromBf16(value) * fromBf16(value);
    const scale = 1 / @sqrt(sum / @as(f64, @floatFromInt(x.len)) + eps);
    for (x, weight, out) |value, w, *o| o.* = fromBf16(value) * scale * fromBf16(w);
}

/// One row: d / 2 cosines, then d / 2 sines; the angle is rounded to f32 as in Hugging Face
/// transformers.
pub fn ropeRow(position: i32, inv_freq: []const f32, scale: f64, out: []f64) void {
    for (inv_freq, 0..) |frequency, i| {
        const angle: f64 = @as(f32, @floatFromInt(position)) * frequency;
        out[i] = scale * @cos(angle);
        out[inv_freq.len + i] = scale * @sin(angle);
    }
}
