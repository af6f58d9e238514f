//! Stress of the pool and the stream: every item once, phases in order, whatever the threads do.
const std = @import("std");
const os = @import("../core/os.zig");
const kernel_mod = @import("kernel.zig");
const executor_mod = @import("executor.zig");

const Executor = executor_mod.Executor;
const gpa = std.testing.allocator;

/// Two phases over `counts`: the first adds 1 to each of `items` counters, the second checks them
/// and sets them back. A stale or doubled item, or a phase that starts early, leaves a wrong
/// counter behind.
const CheckDesc = extern struct {
    counts: [*]u32,
    errors: *u32,
    items: u32,
    /// Which op of the stream this is: they must come in this order.
    number: u32,
    last: *u32,
    spin: u32,
    planned: u32 = 0,
};

const check = kernel_mod.kernel(CheckDesc, &.{ Raise, Lower });

const Raise = struct {
    pub fn plan(desc: *CheckDesc, _: u32) u32 {
        if (desc.last.* +% 1 != desc.number) @atomicStore(u32, desc.errors, 1, .monotonic);
        // Seen by the second phase of this run; a replay must start from 0 again.
        if (desc.planned != 0) @atomicStore(u32, desc.errors, 2, .monotonic);
        desc.planned = 1;
        return desc.items;
    }

    pub fn run(desc: *const CheckDesc, item: u32, scratch: *const kernel_mod.Scratch) void {
        for (0..desc.spin) |i| scratch.data[i % 64] +%= 1;
        // Not atomic on purpose: an item belongs to one thread.
        desc.counts[item] += 1;
    }
};

const Lower = struct {
    pub fn plan(desc: *CheckDesc, _: u32) u32 {
        desc.last.* = desc.number;
        return desc.items;
    }

    pub fn run(desc: *const CheckDesc, item: u32, _: *const kernel_mod.Scratch) void {
        if (desc.counts[item] != 1 or desc.planned != 1) @atomicStore(
            u32,
            desc.errors,
            3,
            .monotonic,
        );
        desc.counts[item] = 0;
    }
};

fn neighbour(stop: *std.atomic.Value(u32)) void {
    while (stop.load(.monotonic) == 0) std.atomic.spinLoopHint();
}

test "thousands of tiny ops of random size, with a busy neighbour" {
    var stop: std.atomic.Value(u32) = .init(0);
    const busy = try os.spawn(neighbour, .{&stop});
    defer busy.join();
    defer stop.store(1, .monotonic);
    var prng = std.Random.DefaultPrng.init(3);
    for ([_]u32{ 1, 2, 3, 8 }) |threads| {
        const executor = try Executor.create(gpa, threads);
        defer executor.destroy();
        var counts: [70]u32 = @splat(0);
        var wrong: u32 = 0;
        var last: u32 = 0;
        for (1..6000) |number| {
            const desc: CheckDesc = .{
                .counts = &counts,
                .errors = &wrong,
                .items = prng.random().uintLessThan(u32, if (number % 7 == 0) counts.len else 5),
                .number = @intCast(number),
                .last = &last,
                .spin = prng.random().uintLessThan(u32, 300),
            };
            try executor.enqueueKernel(&check, &desc);
            if (number % 1000 == 0) executor.sync();
        }
        executor.sync();
        try std.testing.expectEqual(0, wrong);
        try std.testing.expectEqual(5999, last);
    }
}

test "graphs replay from fresh descriptors, events tell how far the stream is" {
    const executor = try Executor.create(gpa, 2);
    defer executor.destroy();
    var counts: [9]u32 = @splat(0);
    var wrong: u32 = 0;
    var last: u32 = 0;
    var times: [2]f64 = @splat(0);
    var middle: executor_mod.Event = .{};
    try executor.beginGraph();
    try executor.enqueueWrite(@intFromPtr(&last), std.mem.asBytes(&@as(u32, 0)));
    try executor.enqueue(.{ .timestamp = @intFromPtr(&times[0]) });
    for (1..50) |number| {
        const desc: CheckDesc = .{
            .counts = &counts,
            .errors = &wrong,
            .items = 9,
            .number = @intCast(number),
            .last = &last,
            .spin = 10,
        };
        try executor.enqueueKernel(&check, &desc);
    }
    try executor.enqueueMark(&middle);
    try executor.enqueue(.{ .timestamp = @intFromPtr(&times[1]) });
    const graph = executor.endGraph();
    defer Executor.freeGraph(gpa, graph);
    for (0..200) |i| {
        try executor.enqueueLaunch(graph);
        if (i % 3 != 0) continue;
        middle.wait();
        try std.testing.expectEqual(49, last);
    }
    executor.sync();
    try std.testing.expectEqual(0, wrong);
    try std.testing.expectEqual(200, middle.reached.load(.monotonic));
    try std.testing.expect(times[0] > 0 and times[1] > times[0]);
}

test "writes are copied at the call, whatever their size" {
    const executor = try Executor.create(gpa, 2);
    defer executor.destroy();
    const bytes = 5 << 20;
    const source = try gpa.alloc(u8, bytes);
    defer gpa.free(source);
    const want = try gpa.alloc(u8, bytes);
    defer gpa.free(want);
    const got = try gpa.alloc(u8, bytes);
    defer gpa.free(got);
    var prng = std.Random.DefaultPrng.init(5);
    prng.random().bytes(source);
    @memset(want, 7);
    try executor.enqueue(
        .{ .fill = .{ .destination = @intFromPtr(got.ptr), .bytes = bytes, .byte = 7 } },
    );
    for (0..300) |_| {
        const length = prng.random().uintLessThan(
            usize,
            if (prng.random().uintLessThan(u32, 20) == 0) bytes else 70_000,
        );
        const from = prng.random().uintLessThan(usize, bytes - length);
        const to = prng.random().uintLessThan(usize, bytes - length);
        @memcpy(want[to..][0..length], source[from..][0..length]);
        try executor.enqueueWrite(@intFromPtr(got.ptr) + to, source[from..][0..length]);
        source[from] +%= 1;
    }
    executor.sync();
    try std.testing.expectEqualSlices(u8, want, got);
}

test "an idle pool sleeps, and wakes for each single command" {
    const executor = try Executor.create(gpa, 4);
    defer executor.destroy();
    var event: executor_mod.Event = .{};
    for (0..200) |_| {
        try executor.enqueueMark(&event);
        event.wait();
        while (executor.pool.sleepers.load(.monotonic) != 4) std.Thread.yield() catch {};
    }
}
