//! How a call fails: an error of one set, a Status for C, and a text for the thread that called.
const std = @import("std");
const types = @import("../abi/types.zig");

pub const Error = error{
    InvalidArgument,
    InvalidHandle,
    OutOfMemory,
    Unsupported,
    Unavailable,
    CaptureViolation,
    IoError,
    CorruptFile,
    Internal,
};

const text_bytes = 1024;
/// Room in front of the text for the call's name, which only the outermost function knows.
const name_bytes = 64;

threadlocal var buffer: [name_bytes + text_bytes + 1]u8 = @splat(0);
threadlocal var text_end: usize = name_bytes;
threadlocal var text_start: usize = name_bytes;

/// Notes what was expected and what came, and returns the error. A text that is too long is cut.
pub fn fail(err: Error, comptime format: []const u8, args: anytype) Error {
    @branchHint(.cold);
    note(format, args);
    return err;
}

fn note(comptime format: []const u8, args: anytype) void {
    var writer: std.Io.Writer = .fixed(buffer[name_bytes..][0..text_bytes]);
    writer.print(format, args) catch {};
    text_end = name_bytes + writer.end;
}

/// Turns the result of a call into its status, with the call's name in front of the text.
pub fn finish(comptime name: []const u8, result: Error!void) types.Status {
    result catch |err| {
        @branchHint(.cold);
        const prefix = name ++ ": ";
        comptime std.debug.assert(prefix.len <= name_bytes);
        if (text_end == name_bytes) note("{s}", .{@errorName(err)});
        text_start = name_bytes - prefix.len;
        @memcpy(buffer[text_start..][0..prefix.len], prefix);
        buffer[text_end] = 0;
        text_end = name_bytes;
        return statusOf(err);
    };
    return .ok;
}

/// The text of this thread's last failed call; empty before the first.
pub fn lastError() [*:0]const u8 {
    return @ptrCast(buffer[text_start..].ptr);
}

fn statusOf(err: Error) types.Status {
    return switch (err) {
        error.InvalidArgument => .invalid_argument,
        error.InvalidHandle => .invalid_handle,
        error.OutOfMemory => .out_of_memory,
        error.Unsupported => .unsupported,
        error.Unavailable => .unavailable,
        error.CaptureViolation => .capture_violation,
        error.IoError => .io_error,
        error.CorruptFile => .corrupt_file,
        error.Internal => .internal,
    };
}

test "the call's name stands in front of the text, and long texts are cut" {
    const status = finish("md_linear", fail(error.Unsupported, "expected {d}, got {d}", .{ 1, 2 }));
    try std.testing.expectEqual(types.Status.unsupported, status);
    try std.testing.expectEqualStrings("md_linear: expected 1, got 2", std.mem.span(lastError()));
    const long: [2 * text_bytes]u8 = @splat('x');
    _ = finish("md_copy", fail(error.Internal, "{s}", .{&long}));
    try std.testing.expectEqual(text_bytes + "md_copy: ".len, std.mem.span(lastError()).len);
    _ = finish("md_copy", error.OutOfMemory);
    try std.testing.expectEqualStrings("md_copy: OutOfMemory", std.mem.span(lastError()));
}
