//! The ops' functions: one generic body, so that an op is its row in the manifest, its check and
//! its kernel.
const types = @import("../abi/types.zig");
const manifest = @import("../abi/manifest.zig");
const check = @import("../core/check.zig");
const errors = @import("../core/errors.zig");
const handles = @import("../core/handles.zig");
const objects = @import("objects.zig");
const checks = @import("checks.zig");
const file = @import("file.zig");

const Error = errors.Error;
const Status = types.Status;

/// The C function of a row of the manifest.
pub fn function(comptime op: manifest.Op) manifest.OpFunction(op.Desc) {
    return struct {
        fn call(ctx: u32, desc: ?*const op.Desc) callconv(.c) Status {
            return errors.finish("md_" ++ op.name, enqueue(op, ctx, desc));
        }
    }.call;
}

fn enqueue(comptime op: manifest.Op, ctx: u32, maybe_desc: ?*const op.Desc) Error!void {
    const desc = try objects.required("desc", maybe_desc);
    const context = try objects.enterContext(ctx);
    defer context.leave();
    if (op.Desc == types.PackDesc and desc.file != 0) return packFromFile(context, desc);
    try @field(checks, op.name)(context, desc);
    return @field(context.backend.ops, op.name)(context.state, desc);
}

/// The kernel reads from the mapping, which must stay until it has.
fn packFromFile(context: *objects.Context, desc: *const types.PackDesc) Error!void {
    try context.requireNoCapture();
    const source = try handles.get(objects.File, .file, desc.file);
    const dtype = try objects.enumValue(types.DType, "source.dtype", check.rawDtype(&desc.source));
    var resolved = desc.*;
    const elements = @as(u64, desc.source.shape[0]) * desc.source.shape[1];
    resolved.source.data = try file.dataAddress(
        source,
        desc.offset,
        elements *| check.dtypeBytes(dtype),
    );
    try checks.weight_pack(context, &resolved);
    _ = source.readers.fetchAdd(1, .monotonic);
    errdefer _ = source.readers.fetchSub(1, .monotonic);
    try context.backend.ops.weight_pack(context.state, &resolved);
    try context.backend.release(context.state, &source.readers);
}

pub fn md_attention_workspace(
    ctx: u32,
    desc: ?*const types.AttentionDesc,
    out: ?*f64,
) callconv(.c) Status {
    return errors.finish("md_attention_workspace", attentionWorkspace(ctx, desc, out));
}

fn attentionWorkspace(
    ctx: u32,
    maybe_desc: ?*const types.AttentionDesc,
    maybe_out: ?*f64,
) Error!void {
    var desc = (try objects.required("desc", maybe_desc)).*;
    const out = try objects.required("out", maybe_out);
    // Memory is planned before it exists: only shapes count here.
    inline for (@typeInfo(types.AttentionDesc).@"struct".fields) |field| {
        if (field.type == types.Tensor or field.type == types.KvCache) {
            const ref = &@field(desc, field.name);
            if (ref.data == 0 and check.given(ref.*)) ref.data = 64;
        }
    }
    const context = try objects.enterContext(ctx);
    defer context.leave();
    try checks.attentionShapes(&desc);
    out.* = @floatFromInt(context.backend.attention_workspace(context.state, &desc));
}
