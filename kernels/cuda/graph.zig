//! Graphs, captured from the stream, and events.
const std = @import("std");
const errors = @import("../core/errors.zig");
const driver = @import("driver.zig");
const Context = @import("context.zig").Context;

const Error = errors.Error;
const gpa = std.heap.c_allocator;

/// A place in the stream that the host can wait for.
pub const Event = struct {
    handle: driver.Event,
    /// Graphs that record it.
    graphs: u32 = 0,

    pub fn create(ctx: *Context) Error!*Event {
        const self = try gpa.create(Event);
        errdefer gpa.destroy(self);
        self.* = .{ .handle = undefined };
        try ctx.call(.cuEventCreate, .{ &self.handle, driver.event_disable_timing });
        return self;
    }

    /// In a capture it becomes a node of the graph, so that each launch records it.
    pub fn record(self: *Event, ctx: *Context) Error!void {
        const graph = ctx.capture orelse
            return ctx.call(.cuEventRecord, .{ self.handle, ctx.stream });
        try graph.marks.ensureUnusedCapacity(gpa, 1);
        try ctx.call(
            .cuEventRecordWithFlags,
            .{ self.handle, ctx.stream, driver.event_record_external },
        );
        graph.marks.appendAssumeCapacity(self);
        self.graphs += 1;
    }

    pub fn wait(self: *Event, ctx: *Context) Error!void {
        return ctx.call(.cuEventSynchronize, .{self.handle});
    }

    pub fn destroy(self: *Event, ctx: *Context) void {
        _ = ctx.functions.cuEventDestroy_v2(self.handle);
        gpa.destroy(self);
    }
};

pub const Graph = struct {
    exec: ?driver.GraphExec = null,
    marks: std.ArrayList(*Event) = .empty,
    /// Pinned memory that captured writes copy from at each launch.
    payloads: std.ArrayList([*]u8) = .empty,

    pub fn begin(ctx: *Context) Error!void {
        const self = try gpa.create(Graph);
        errdefer gpa.destroy(self);
        self.* = .{};
        try ctx.call(.cuStreamBeginCapture_v2, .{ ctx.stream, .thread_local });
        ctx.capture = self;
    }

    /// Ends the capture; where it fails nothing is left of it.
    pub fn end(ctx: *Context) Error!*Graph {
        const self = ctx.capture.?;
        ctx.capture = null;
        errdefer self.destroy(ctx);
        try ctx.enter();
        var captured: ?driver.GraphHandle = null;
        try ctx.call(.cuStreamEndCapture, .{ ctx.stream, &captured });
        defer _ = ctx.functions.cuGraphDestroy(captured.?);
        var exec: driver.GraphExec = undefined;
        try ctx.call(.cuGraphInstantiateWithFlags, .{ &exec, captured.?, 0 });
        self.exec = exec;
        // Else the first launch would pay for it.
        try ctx.call(.cuGraphUpload, .{ exec, ctx.stream });
        return self;
    }

    pub fn launch(self: *Graph, ctx: *Context) Error!void {
        return ctx.call(.cuGraphLaunch, .{ self.exec.?, ctx.stream });
    }

    /// Captures a write; the graph keeps the bytes.
    pub fn addWrite(self: *Graph, ctx: *Context, destination: u64, source: []const u8) Error!void {
        try self.payloads.ensureUnusedCapacity(gpa, 1);
        var payload: [*]u8 = undefined;
        {
            const mode = ctx.relaxCapture();
            defer ctx.restoreCapture(mode);
            try ctx.call(.cuMemHostAlloc, .{ &payload, source.len, driver.host_alloc_portable });
        }
        self.payloads.appendAssumeCapacity(payload);
        @memcpy(payload, source);
        try ctx.call(
            .cuMemcpyAsync,
            .{ destination, @intFromPtr(payload), source.len, ctx.stream },
        );
    }

    /// Once the stream has passed it.
    pub fn destroy(self: *Graph, ctx: *Context) void {
        if (self.exec) |exec| _ = ctx.functions.cuGraphExecDestroy(exec);
        for (self.payloads.items) |payload| _ = ctx.functions.cuMemFreeHost(payload);
        for (self.marks.items) |event| event.graphs -= 1;
        self.payloads.deinit(gpa);
        self.marks.deinit(gpa);
        gpa.destroy(self);
    }
};
