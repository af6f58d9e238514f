//! Helpers of the kernels' own tests: running a kernel without the executor, and making inputs.
const std = @import("std");
const types = @import("../abi/types.zig");
const kernel_mod = @import("kernel.zig");
const simd = @import("simd.zig");

/// Runs every phase as the executor would, on one thread: `plan` for `threads` threads, then all
/// items in a shuffled order, each with scratch full of NaNs (nothing may survive from one item to
/// the next). `desc` itself is left alone.
pub fn run(kernel: kernel_mod.Kernel, desc: anytype, threads: u32) !void {
    const gpa = std.testing.allocator;
    var copy = desc.*;
    const memory = try gpa.alignedAlloc(u8, .@"64", kernel_mod.scratch_bytes);
    defer gpa.free(memory);
    const scratch: kernel_mod.Scratch = .{ .data = memory.ptr, .bytes = memory.len };
    var prng = std.Random.DefaultPrng.init(threads);
    for (kernel.phases[0..kernel.phase_count]) |phase| {
        const order = try gpa.alloc(u32, phase.plan(&copy, threads));
        defer gpa.free(order);
        for (order, 0..) |*item, i| item.* = @intCast(i);
        prng.random().shuffle(u32, order);
        for (order) |item| {
            @memset(memory, 0xff);
            phase.run(&copy, item, &scratch);
        }
    }
}

/// A tensor over a slice or an array behind a pointer; u16 is bf16.
pub fn tensor(data: anytype, shape: []const u32) types.Tensor {
    const Element = std.meta.Elem(@TypeOf(data));
    var result: types.Tensor = .{
        .data = @intFromPtr(@as([]const Element, data).ptr),
        .rank = @intCast(shape.len),
        .dtype = switch (Element) {
            f32 => .f32,
            u16 => .bf16,
            i32 => .i32,
            u32 => .u32,
            u8 => .u8,
            f64 => .f64,
            else => @compileError("no dtype for " ++ @typeName(Element)),
        },
    };
    @memcpy(result.shape[0..shape.len], shape);
    return result;
}

/// Normally distributed bf16 values times `scale`; the caller frees.
pub fn randomBf16(random: std.Random, count: usize, scale: f32) ![]u16 {
    const values = try std.testing.allocator.alloc(u16, count);
    for (values) |*value| value.* = simd.f32ToBf16(scale * random.floatNorm(f32));
    return values;
}

/// Every value within `relative` of its own size plus `absolute`; names the first that is not.
pub fn expectClose(want: []const f64, got: anytype, relative: f64, absolute: f64) !void {
    try std.testing.expectEqual(want.len, got.len);
    for (want, got, 0..) |w, g, i| {
        const value: f64 = if (@TypeOf(g) == u16) simd.bf16ToF32(g) else g;
        if (@abs(value - w) <= relative * @abs(w) + absolute) continue;
        std.debug.print("element {d}: wanted {d}, got {d}\n", .{ i, w, value });
        return error.NotClose;
    }
}
