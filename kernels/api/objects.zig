//! What handles stand for, and the checks that every call begins with.
const std = @import("std");
const types = @import("../abi/types.zig");
const backend_mod = @import("../core/backend.zig");
const errors = @import("../core/errors.zig");
const handles = @import("../core/handles.zig");
const os = @import("../core/os.zig");

const Error = errors.Error;
const Handle = handles.Handle;

pub const gpa = std.heap.c_allocator;

pub const Context = struct {
    backend: *const backend_mod.Backend,
    state: backend_mod.State,
    capturing: bool = false,
    /// 1 while a call runs: two threads at once would tear the stream's ring.
    busy: std.atomic.Value(u8) = .init(0),

    fn enter(self: *Context) Error!void {
        if (self.busy.swap(1, .acquire) != 0) {
            return errors.fail(
                error.InvalidArgument,
                "expected one thread at a time to use a context, another is in a call",
                .{},
            );
        }
    }

    pub fn leave(self: *Context) void {
        self.busy.store(0, .release);
    }

    /// For what cannot be part of a graph.
    pub fn requireNoCapture(self: *const Context) Error!void {
        if (self.capturing) return errors.fail(
            error.CaptureViolation,
            "expected outside of a capture, came between md_graph_begin and md_graph_end",
            .{},
        );
    }
};

/// The context, for this thread alone until `leave`.
pub fn enterContext(handle: Handle) Error!*Context {
    const context = try handles.get(Context, .context, handle);
    try context.enter();
    return context;
}

pub const Memory = struct { context: Handle, memory: backend_mod.Memory };
pub const Event = struct { context: Handle, state: *anyopaque };
pub const Graph = struct { context: Handle, state: *anyopaque };

pub const File = struct {
    bytes: []align(os.page_bytes) const u8,
    /// Where the tensors' bytes begin.
    data_start: u64,
    /// Packs that have been enqueued and not run yet, each of which reads from the mapping.
    readers: os.Word = .init(0),
};

/// An object that belongs to a context, with the context entered.
pub fn Entered(comptime T: type) type {
    return struct { object: *T, context: *Context };
}

pub fn enter(comptime T: type, kind: handles.Kind, handle: Handle) Error!Entered(T) {
    const object = try handles.get(T, kind, handle);
    return .{ .object = object, .context = try enterContext(object.context) };
}

/// Stores a new object behind a new handle.
pub fn publish(comptime T: type, kind: handles.Kind, owner: Handle, value: T) Error!Handle {
    const object = try gpa.create(T);
    errdefer gpa.destroy(object);
    object.* = value;
    return handles.make(kind, owner, object);
}

pub fn retract(object: anytype, handle: Handle) void {
    handles.free(handle);
    gpa.destroy(object);
}

pub fn required(
    comptime name: []const u8,
    pointer: anytype,
) Error!@typeInfo(@TypeOf(pointer)).optional.child {
    return pointer orelse errors.fail(
        error.InvalidArgument,
        "expected {s}, got a null pointer",
        .{name},
    );
}

/// An enum value that came over the boundary as a number.
pub fn enumValue(comptime E: type, comptime name: []const u8, value: u32) Error!E {
    return std.enums.fromInt(E, value) orelse errors.fail(error.InvalidArgument, "expected {s} of at most {d}, got {d}", .{
        name, @typeInfo(E).@"enum".fields.len - 1, value,
    });
}

/// An enum field's bits, which a caller may have set to anything.
pub fn rawEnum(pointer: anytype) u32 {
    return @as(*const u32, @ptrCast(pointer)).*;
}

/// A size in bytes that came as a double.
pub fn byteCount(value: f64) Error!u64 {
    if (value >= 0 and value <= 1 << 53 and value == @floor(value)) return @intFromFloat(value);
    return errors.fail(
        error.InvalidArgument,
        "expected a whole number of bytes up to 2^53, got {d}",
        .{value},
    );
}

pub fn address(comptime name: []const u8, value: usize, comptime alignment: usize) Error!u64 {
    if (value != 0 and value % alignment == 0) return value;
    return errors.fail(
        error.InvalidArgument,
        "expected {s} as an address that {d} divides, got 0x{x}",
        .{ name, alignment, value },
    );
}
