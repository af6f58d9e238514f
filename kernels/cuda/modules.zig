//! The compiled kernels: one image for each file of src/, inside the library, given to the driver
//! when its first kernel is wanted. An image serves all devices of the process.
const std = @import("std");
const options = @import("cuda_options");
const errors = @import("../core/errors.zig");
const os = @import("../core/os.zig");
const driver = @import("driver.zig");
const Context = @import("context.zig").Context;

const Error = errors.Error;

pub const Module = @import("module.zig").Module;

const count = @typeInfo(Module).@"enum".fields.len;

/// Whether the library was built with CUDA kernels.
pub const built = options.built;

const Image = []align(image_alignment) const u8;
const image_alignment = 64;

const images: [count]Image = blk: {
    @setEvalBranchQuota(10_000);
    var result: [count]Image = @splat(&.{});
    if (built) for (std.enums.values(Module)) |module| {
        const image align(image_alignment) = @embedFile(@tagName(module) ++ ".fatbin").*;
        result[@intFromEnum(module)] = &image;
    };
    break :blk result;
};

/// Held while a library or a kernel is looked up for the first time.
pub var lock: os.Lock = .{};
var libraries: [count]?driver.LibraryHandle = @splat(null);

pub fn requireBuilt() Error!void {
    if (!built) return errors.fail(
        error.Unavailable,
        "this library was built without CUDA kernels; run MAGICDEC_CUDA=1 bun run build",
        .{},
    );
}

/// With `lock` held.
pub fn library(ctx: *Context, module: Module) Error!driver.LibraryHandle {
    const slot = &libraries[@intFromEnum(module)];
    if (slot.*) |loaded| return loaded;
    var handle: driver.LibraryHandle = undefined;
    const image = images[@intFromEnum(module)];
    try ctx.call(.cuLibraryLoadData, .{ &handle, image.ptr, null, null, 0, null, null, 0 });
    slot.* = handle;
    return handle;
}

test "an image for every module, or for none" {
    for (images) |image| {
        try std.testing.expectEqual(built, image.len != 0);
        if (!built) continue;
        // The magic number of a fat binary.
        try std.testing.expectEqual(0xba55ed50, std.mem.readInt(u32, image[0..4], .little));
    }
}
