//! What a stream carries: kernels with a copy of their descriptor, and the small things that the
//! driver does by itself.
const std = @import("std");
const os = @import("../core/os.zig");
const errors = @import("../core/errors.zig");
const kernel_mod = @import("kernel.zig");

pub const max_desc_bytes = 512;

pub const Command = union(enum) {
    kernel: KernelCommand,
    launch: *const Graph,
    mark: *Event,
    /// Address of an f64.
    timestamp: u64,
    write: Write,
    fill: struct { destination: u64, bytes: u64, byte: u8 },
    /// Takes 1 off once everything before has run.
    release: *os.Word,
};

pub const KernelCommand = struct {
    kernel: *const kernel_mod.Kernel,
    bytes: u32,
    desc: [max_desc_bytes]u8 align(16),
};

pub const Write = struct {
    destination: u64,
    source: [*]const u8,
    bytes: usize,
    /// Where the staging ring is free up to afterwards; null for bytes that a graph owns.
    staging_end: ?u64,
};

/// A place in the stream: the host counts the marks that it enqueued, the device those that it
/// reached.
pub const Event = struct {
    reached: os.Word = .init(0),
    waiting: std.atomic.Value(u32) = .init(0),
    /// The host's alone.
    enqueued: u32 = 0,
    /// Graphs that mark it.
    graphs: u32 = 0,

    pub fn mark(self: *Event) void {
        _ = self.reached.fetchAdd(1, .seq_cst);
        if (self.waiting.load(.seq_cst) != 0) os.wake(&self.reached, std.math.maxInt(u32));
    }

    /// Waits for every mark enqueued so far.
    pub fn wait(self: *Event) void {
        self.waiting.store(1, .seq_cst);
        defer self.waiting.store(0, .monotonic);
        while (true) {
            const reached = self.reached.load(.seq_cst);
            if (@as(i32, @bitCast(reached -% self.enqueued)) >= 0) return;
            os.wait(&self.reached, reached);
        }
    }
};

/// Recorded commands. Nothing in it changes once recording has ended: each replay works on copies
/// of the descriptors.
pub const Graph = struct {
    gpa: std.mem.Allocator,
    commands: std.ArrayList(Command) = .empty,
    /// Bytes that recorded writes copy from.
    payloads: std.ArrayList([]const u8) = .empty,

    pub fn deinit(self: *Graph) void {
        for (self.commands.items) |command| switch (command) {
            .mark => |event| event.graphs -= 1,
            else => {},
        };
        for (self.payloads.items) |bytes| self.gpa.free(bytes);
        self.payloads.deinit(self.gpa);
        self.commands.deinit(self.gpa);
    }

    pub fn add(self: *Graph) errors.Error!*Command {
        return self.commands.addOne(self.gpa);
    }

    pub fn addMark(self: *Graph, event: *Event) errors.Error!void {
        (try self.add()).* = .{ .mark = event };
        event.graphs += 1;
    }

    pub fn addWrite(self: *Graph, destination: u64, bytes: []const u8) errors.Error!void {
        try self.payloads.ensureUnusedCapacity(self.gpa, 1);
        try self.commands.ensureUnusedCapacity(self.gpa, 1);
        const copy = try self.gpa.dupe(u8, bytes);
        self.payloads.appendAssumeCapacity(copy);
        self.commands.appendAssumeCapacity(.{ .write = .{
            .destination = destination,
            .source = copy.ptr,
            .bytes = copy.len,
            .staging_end = null,
        } });
    }

    /// What a launch adds to the events' counts.
    pub fn countMarks(self: *const Graph) void {
        for (self.commands.items) |command| switch (command) {
            .mark => |event| event.enqueued +%= 1,
            else => {},
        };
    }
};
