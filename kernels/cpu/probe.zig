//! Measures what this machine can do, with all threads of a context at once.
const std = @import("std");
const types = @import("../abi/types.zig");
const errors = @import("../core/errors.zig");
const os = @import("../core/os.zig");
const kernel_mod = @import("kernel.zig");
const Executor = @import("executor.zig").Executor;

/// Long against waking a thread, short enough for a start-up.
const target_ns = 30 * std.time.ns_per_ms;
/// The best of so many counts: what else runs on the machine only ever makes it slower.
const attempts = 5;
const max_items = 1024;

const Shared = struct {
    table: *const kernel_mod.LevelTable,
    work: [max_items]f64 = @splat(0),
    started: u64 = 0,
};

const Desc = extern struct {
    shared: *Shared,
    data: [*]const u8,
    bytes_per_item: u64,
    kind: types.ProbeKind,
    rounds: u32,
};

/// One item a thread: each runs alone on its own part of the data.
const share = kernel_mod.kernel(Desc, &.{Share});

const Share = struct {
    pub fn plan(desc: *Desc, threads: u32) u32 {
        desc.shared.started = os.nanoseconds();
        return threads;
    }

    pub fn run(desc: *const Desc, item: u32, scratch: *const kernel_mod.Scratch) void {
        const sink: *f32 = @ptrCast(scratch.data);
        sink.* = 1;
        const data = desc.data + item * desc.bytes_per_item;
        desc.shared.work[item] = desc.shared.table.probe(
            desc.kind,
            data,
            desc.bytes_per_item,
            desc.rounds,
            sink,
        );
    }
};

/// GB/s or GFLOP/s.
pub fn measure(
    executor: *Executor,
    table: *const kernel_mod.LevelTable,
    kind: types.ProbeKind,
    bytes: usize,
) errors.Error!f64 {
    const threads = executor.threadCount();
    const data = os.mapMemory(bytes) catch return errors.fail(
        error.OutOfMemory,
        "the system refused {d} bytes",
        .{bytes},
    );
    defer os.unmapMemory(data);
    // Untouched pages are all the same page of zeros, which no memory bus would see.
    @memset(data, 1);
    var shared: Shared = .{ .table = table };
    var desc: Desc = .{
        .shared = &shared,
        .data = data.ptr,
        .bytes_per_item = bytes / threads / os.page_bytes * os.page_bytes,
        .kind = kind,
        .rounds = 1,
    };
    var elapsed = try once(executor, &shared, &desc);
    while (elapsed < target_ns and desc.rounds < 1 << 24) {
        desc.rounds *= 2;
        elapsed = try once(executor, &shared, &desc);
    }
    var best: f64 = 0;
    for (0..attempts) |_| {
        elapsed = try once(executor, &shared, &desc);
        var work: f64 = 0;
        for (shared.work[0..threads]) |part| work += part;
        best = @max(best, work / @as(f64, @floatFromInt(elapsed)));
    }
    return best;
}

fn once(executor: *Executor, shared: *Shared, desc: *const Desc) errors.Error!u64 {
    try executor.enqueueKernel(&share, desc);
    executor.sync();
    return @max(1, os.nanoseconds() - shared.started);
}
