//! Sampling and acceptance in plain f64, by sorting and summing, and the harness of their tests.
const std = @import("std");
const types = @import("../abi/types.zig");
const kernel_mod = @import("../cpu/kernel.zig");
const philox = @import("../cpu/ops/philox.zig");

const gpa = std.testing.allocator;

pub const plain: types.SamplingParams = .{
    .temperature = 1,
    .top_p = 1,
    .min_p = 0,
    .top_k = 0,
    .seed_low = 1,
    .seed_high = 2,
    .sequence = 0,
};

/// A distribution, and how far its filters were from deciding otherwise (relative; an f32 kernel
/// may differ where this is tiny).
pub const Processed = struct { p: []f64, margin: f64 };

/// Temperature, top-k, top-p, min-p of one row, as documented in distribution.zig; the caller frees
/// `p`.
pub fn process(logits: []const f32, params: types.SamplingParams) !Processed {
    const p = try gpa.alloc(f64, logits.len);
    const mode = argmax(logits);
    if (params.temperature == 0 or std.math.isInf(logits[mode])) {
        @memset(p, 0);
        p[mode] = 1;
        return .{ .p = p, .margin = 1 };
    }
    const t: f64 = params.temperature;
    for (p, logits) |*x, logit| {
        x.* = if (std.math.isNan(logit)) 0 else @exp((@as(f64, logit) - logits[mode]) / t);
    }
    const sorted = try gpa.dupe(f64, p);
    defer gpa.free(sorted);
    std.sort.pdq(f64, sorted, {}, std.sort.desc(f64));

    var least: f64 = 0;
    var margin: f64 = 1;
    if (params.top_k != 0 and params.top_k < p.len) least = sorted[params.top_k - 1];
    if (params.top_p < 1) {
        var total: f64 = 0;
        for (sorted) |x| total += if (x >= least) x else 0;
        const goal = @as(f64, params.top_p) * total;
        var sum: f64 = 0;
        for (sorted) |x| {
            if (sum >= goal or x < least) break;
            sum += x;
            margin = @min(margin, @abs(sum / goal - 1));
            if (sum >= goal) least = x;
        }
    }
    if (params.min_p > 0) {
        for (sorted) |x| margin = @min(margin, @abs(x / params.min_p - 1));
        least = @max(least, params.min_p);
    }
    var total: f64 = 0;
    for (p) |*x| {
        if (x.* < least) x.* = 0;
        total += x.*;
    }
    for (p) |*x| x.* /= total;
    return .{ .p = p, .margin = margin };
}

/// Lowest index of the largest value; NaN is never it.
pub fn argmax(row: []const f32) usize {
    var best: usize = 0;
    var top = -std.math.inf(f32);
    for (row, 0..) |x, i| {
        if (x > top) {
            top = x;
            best = i;
        }
    }
    return best;
}

/// u of 32 random bits, by the convention of race.zig.
pub fn uniform(bits: u32) f64 {
    return (@as(f64, @floatFromInt(bits)) + 0.5) * 0x1p-32;
}

/// The word of one vocabulary entry, by the convention of philox.zig.
pub fn word(
    params: types.SamplingParams,
    stream: types.NoiseStream,
    position: i32,
    entry: usize,
) u32 {
    const c: u32 = @intCast(entry / 64 * 16 + entry % 16);
    const counter = [4]u32{ c, @bitCast(position), params.sequence, @intFromEnum(stream) };
    return philox.scalar(counter, .{ params.seed_low, params.seed_high })[entry / 16 % 4];
}

/// The winner of weights (any positive scale) with Gumbel noise, and its lead over the second in
/// nats.
pub const Drawn = struct { token: usize, lead: f64 };

pub fn draw(
    weights: []const f64,
    params: types.SamplingParams,
    stream: types.NoiseStream,
    position: i32,
) Drawn {
    const none = -std.math.inf(f64);
    var best: f64 = none;
    var second: f64 = none;
    var token: usize = 0;
    for (weights, 0..) |weight, i| {
        if (weight <= 0) continue;
        const e = -std.math.log1p(-uniform(word(params, stream, position, i)));
        const score = @log(weight) - @log(e);
        if (score > best) {
            second = best;
            best = score;
            token = i;
        } else second = @max(second, score);
    }
    return .{ .token = token, .lead = best - second };
}

/// What the negative controls change in the rule.
pub const Rule = struct {
    residual: bool = true,
    recovery: types.NoiseStream = .recovery,
};

/// One sequence's rejection step in f64: p (g + 1 rows of v), q (g rows). Writes the emitted tokens
/// and returns how close the nearest decision was (in units of u or nats).
pub fn reject(
    rule: Rule,
    p: []const []const f64,
    q: []const []const f64,
    drafts: []const i32,
    params: types.SamplingParams,
    len: i32,
    emitted: *std.ArrayList(i32),
) !f64 {
    var margin: f64 = 1;
    for (drafts, 0..) |d, j| {
        const position = len + 1 + @as(i32, @intCast(j));
        const token: usize = @intCast(d);
        const u = uniform(word(params, .accept, position, 0));
        const ratio = if (q[j][token] > 0) p[j][token] / q[j][token] else 2 * p[j][token];
        if (ratio < 1) margin = @min(margin, @abs(u - ratio));
        if (u < ratio) {
            try emitted.append(gpa, d);
            continue;
        }
        const rest = try gpa.dupe(f64, p[j]);
        defer gpa.free(rest);
        if (rule.residual) for (rest, q[j]) |*x, y| {
            // The kernel's p and q are f32: a difference of their rounding is no mass.
            x.* = if (x.* - y > 1e-6 * x.*) x.* - y else 0;
        };
        const drawn = draw(rest, params, rule.recovery, position);
        try emitted.append(gpa, @intCast(drawn.token));
        return @min(margin, drawn.lead);
    }
    const position = len + 1 + @as(i32, @intCast(drafts.len));
    const drawn = draw(p[drafts.len], params, rule.recovery, position);
    try emitted.append(gpa, @intCast(drawn.token));
    return @min(margin, drawn.lead);
}

/// Pearson's statistic of counts against probabilities.
pub fn chiSquare(counts: []const u32, p: []const f64) f64 {
    var n: f64 = 0;
    for (counts) |c| n += @floatFromInt(c);
    var sum: f64 = 0;
    for (counts, p) |c, x| {
        const difference = @as(f64, @floatFromInt(c)) - n * x;
        sum += difference * difference / (n * x);
    }
    return sum;
}

/// Runs all items of a kernel with scratch that is made once (testing.run poisons a megabyte an
/// item, too slow for thousands of sequences).
pub const Runner = struct {
    memory: []align(64) u8,

    pub fn init() !Runner {
        return .{ .memory = try gpa.alignedAlloc(u8, .@"64", kernel_mod.scratch_bytes) };
    }

    pub fn deinit(self: Runner) void {
        gpa.free(self.memory);
    }

    pub fn run(self: Runner, kernel: kernel_mod.Kernel, desc: anytype) void {
        const scratch: kernel_mod.Scratch = .{ .data = self.memory.ptr, .bytes = self.memory.len };
        var copy = desc.*;
        for (kernel.phases[0..kernel.phase_count]) |phase| {
            for (0..phase.plan(&copy, 1)) |item| phase.run(&copy, @intCast(item), &scratch);
        }
    }
};

/// A tensor over part of an array.
pub fn tensor(comptime T: type, data: []const T, shape: []const u32) types.Tensor {
    var result: types.Tensor = .{
        .data = @intFromPtr(data.ptr),
        .rank = @intCast(shape.len),
        .dtype = if (T == f32) .f32 else if (T == i32) .i32 else .u32,
    };
    @memcpy(result.shape[0..shape.len], shape);
    return result;
}

pub fn paramsTensor(params: []const types.SamplingParams) types.Tensor {
    const words: []const u32 = @as([*]const u32, @ptrCast(params.ptr))[0 .. params.len * 8];
    return tensor(u32, words, &.{ @intCast(params.len), 8 });
}
