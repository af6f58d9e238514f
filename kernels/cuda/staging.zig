//! The way from pageable host memory to the GPU: through pinned buffers, which the copy engine
//! reads while the host fills the next. What is written has been copied when the call returns.
const std = @import("std");
const errors = @import("../core/errors.zig");
const driver = @import("driver.zig");
const Context = @import("context.zig").Context;

const Error = errors.Error;

/// A write of at most this goes through the small ring, which many of them share.
pub const small_bytes = 128 << 10;
/// Long enough that starting a copy costs nothing beside it.
pub const large_bytes = 16 << 20;

const alignment = 64;

/// Pinned buffers that are filled in turn. A buffer is filled again once the stream has passed the
/// copies from it.
fn Ring(comptime buffers: usize, comptime bytes: usize) type {
    return struct {
        const Self = @This();

        memory: ?[*]u8 = null,
        /// Where the stream stands after the last copy from each buffer.
        passed: [buffers]driver.Event = undefined,
        events: usize = 0,
        buffer: usize = 0,
        used: usize = 0,

        fn create(self: *Self, ctx: *Context) Error!void {
            if (self.memory != null) return;
            while (self.events < buffers) : (self.events += 1) {
                const event = &self.passed[self.events];
                try ctx.call(.cuEventCreate, .{ event, driver.event_disable_timing });
            }
            var memory: [*]u8 = undefined;
            try ctx.call(
                .cuMemHostAlloc,
                .{ &memory, buffers * bytes, driver.host_alloc_portable },
            );
            self.memory = memory;
        }

        fn deinit(self: *Self, ctx: *Context) void {
            for (self.passed[0..self.events]) |event| _ = ctx.functions.cuEventDestroy_v2(event);
            if (self.memory) |memory| _ = ctx.functions.cuMemFreeHost(memory);
        }

        /// A pinned copy of `piece`, for one copy that is enqueued next.
        fn stage(self: *Self, ctx: *Context, piece: []const u8) Error!u64 {
            std.debug.assert(piece.len <= bytes);
            try self.create(ctx);
            if (self.used + piece.len > bytes) try self.turn(ctx);
            const place = self.memory.? + self.buffer * bytes + self.used;
            @memcpy(place, piece);
            self.used = std.mem.alignForward(usize, self.used + piece.len, alignment);
            return @intFromPtr(place);
        }

        fn turn(self: *Self, ctx: *Context) Error!void {
            try ctx.call(.cuEventRecord, .{ self.passed[self.buffer], ctx.stream });
            self.buffer = (self.buffer + 1) % buffers;
            self.used = 0;
            // An event that was never recorded does not wait.
            try ctx.call(.cuEventSynchronize, .{self.passed[self.buffer]});
        }
    };
}

pub const Staging = struct {
    small: Ring(8, small_bytes) = .{},
    large: Ring(2, large_bytes) = .{},
    /// Device memory of `large_bytes`, made at the first upload.
    device: u64 = 0,

    pub fn deinit(self: *Staging, ctx: *Context) void {
        self.small.deinit(ctx);
        self.large.deinit(ctx);
        if (self.device != 0) _ = ctx.functions.cuMemFree_v2(self.device);
    }

    /// Enqueues a copy of `source` to `destination`.
    pub fn write(self: *Staging, ctx: *Context, destination: u64, source: []const u8) Error!void {
        if (source.len <= small_bytes) {
            const staged = try self.small.stage(ctx, source);
            return ctx.call(.cuMemcpyAsync, .{ destination, staged, source.len, ctx.stream });
        }
        var at: usize = 0;
        while (at < source.len) {
            const piece = source[at..][0..@min(large_bytes, source.len - at)];
            const staged = try self.large.stage(ctx, piece);
            try ctx.call(.cuMemcpyAsync, .{ destination + at, staged, piece.len, ctx.stream });
            at += piece.len;
        }
    }

    pub fn upload(self: *Staging, ctx: *Context, source: []const u8) Error!u64 {
        if (self.device == 0) try ctx.call(.cuMemAlloc_v2, .{ &self.device, large_bytes });
        const staged = try self.large.stage(ctx, source);
        try ctx.call(.cuMemcpyAsync, .{ self.device, staged, source.len, ctx.stream });
        return self.device;
    }
};
