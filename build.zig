//! Builds libmagicdec: the CPU kernels once for each instruction level, the CUDA kernels where nvcc
//! is given, and one library around them.
//!
//!   zig build                      zig-out/lib/libmagicdec.so (.dylib on macOS)
//!   zig build -Dnvcc=PATH          the same with CUDA kernels, and what ptxas says of each file in
//!                                  zig-out/cuda/
//!   zig build check                checks everything that is Zig, without making code
//!   zig build test                 Zig's own tests, the kernels' at every level this machine runs
//!   zig build test-api             all but the kernels
//!   zig build emit                 writes libs/abi/src/abi.gen.ts
//!   zig build -Dtarget=aarch64-macos
const std = @import("std");
const builtin = @import("builtin");
const Module = @import("kernels/cuda/module.zig").Module;

const Feature = std.Target.x86.Feature;

comptime {
    if (!std.mem.eql(u8, builtin.zig_version_string, "0.16.0")) {
        @compileError(
            "expected Zig 0.16.0, got " ++ builtin.zig_version_string ++ ": run bun run build",
        );
    }
}

const Level = struct {
    name: []const u8,
    model: ?*const std.Target.Cpu.Model = null,
    add: []const Feature = &.{},
    /// What tells that a machine runs it; models also carry tuning hints that no other machine has.
    needs: []const Feature = &.{},
};

const avx512 = [_]Feature{ .avx512f, .avx512bw, .avx512cd, .avx512dq, .avx512vl };

/// The best one last. The names are CpuLevel's.
const x86_levels = [_]Level{
    .{ .name = "baseline", .model = &std.Target.x86.cpu.x86_64_v2 },
    .{ .name = "v3", .model = &std.Target.x86.cpu.x86_64_v3, .needs = &.{ .avx2, .fma, .bmi2 } },
    .{ .name = "v4", .model = &std.Target.x86.cpu.x86_64_v4, .needs = &avx512 },
    .{
        .name = "v4_bf16",
        .model = &std.Target.x86.cpu.x86_64_v4,
        .add = &.{.avx512bf16},
        .needs = &(avx512 ++ .{.avx512bf16}),
    },
};

const other_levels = [_]Level{.{ .name = "baseline" }};

pub fn build(b: *std.Build) void {
    const wanted = b.standardTargetOptionsQueryOnly(.{});
    const nvcc = b.option([]const u8, "nvcc", "CUDA 13.0's compiler; builds the CUDA kernels");
    const arch = wanted.cpu_arch orelse builtin.cpu.arch;
    const levels: []const Level = if (arch == .x86_64) &x86_levels else &other_levels;
    const runs_cuda = (wanted.os_tag orelse builtin.os.tag) == .linux;
    const cuda = cudaImages(b, if (runs_cuda) nvcc else null);

    const names = b.addOptions();
    names.addOption([]const []const u8, "levels", levelNames(b, levels));

    const objects = b.allocator.alloc(
        *std.Build.Step.Compile,
        levels.len,
    ) catch @panic("out of memory");
    for (objects, levels) |*object, level| object.* = levelObject(b, wanted, level);

    const module = compiledModule(b, "kernels/lib.zig", target(b, wanted, levels[0]), .ReleaseFast);
    module.strip = true;
    addLevels(module, names, objects);
    cuda.addTo(module);
    const library = b.addLibrary(
        .{ .name = "magicdec", .linkage = .dynamic, .root_module = module },
    );
    b.installArtifact(library);
    for (cuda.reports) |report| {
        b.getInstallStep().dependOn(&b.addInstallFile(report.file, report.name).step);
    }

    const emit = b.addRunArtifact(b.addExecutable(.{
        .name = "emit",
        .root_module = b.createModule(.{
            .root_source_file = b.path("kernels/abi/emit.zig"),
            .target = b.graph.host,
            .optimize = .Debug,
        }),
    }));
    const generated = emit.captureStdOut(.{});
    const update = b.addUpdateSourceFiles();
    update.addCopyFileToSource(generated, "libs/abi/src/abi.gen.ts");
    b.step("emit", "Write libs/abi/src/abi.gen.ts").dependOn(&update.step);

    const test_step = b.step("test", "Run Zig's tests, at every level that this machine runs");
    const api_module = compiledModule(
        b,
        "kernels/api_tests.zig",
        target(b, wanted, levels[0]),
        .ReleaseSafe,
    );
    addLevels(api_module, names, objects);
    cuda.addTo(api_module);
    const api_step = b.step("test-api", "Run the tests of all but the kernels");
    addTest(b, api_step, "api", api_module);
    test_step.dependOn(api_step);
    for (levels) |level| {
        if (!hostRuns(b, level)) continue;
        const tests = compiledModule(
            b,
            "kernels/cpu_tests.zig",
            target(b, wanted, level),
            .ReleaseSafe,
        );
        addTest(b, test_step, b.fmt("cpu_{s}", .{level.name}), tests);
    }
    addCheck(b, target(b, wanted, levels[0]), names);
}

/// Nobody asks for these artifacts' code, so none is made.
fn addCheck(
    b: *std.Build,
    resolved: std.Build.ResolvedTarget,
    names: *std.Build.Step.Options,
) void {
    const step = b.step("check", "Check the library and its tests without making code");
    const without_cuda = cudaImages(b, null);
    const library = compiledModule(b, "kernels/lib.zig", resolved, .Debug);
    const api_tests = compiledModule(b, "kernels/api_tests.zig", resolved, .Debug);
    for ([_]*std.Build.Module{ library, api_tests }) |module| {
        module.addOptions("levels_options", names);
        without_cuda.addTo(module);
    }
    step.dependOn(&b.addLibrary(.{ .name = "check", .root_module = library }).step);
    step.dependOn(&b.addTest(.{ .name = "check_api", .root_module = api_tests }).step);
    const cpu_tests = compiledModule(b, "kernels/cpu_tests.zig", resolved, .Debug);
    step.dependOn(&b.addTest(.{ .name = "check_cpu", .root_module = cpu_tests }).step);
}

/// The compiled kernels, one image a file, and what ptxas says of each: registers and spills.
const CudaImages = struct {
    options: *std.Build.Step.Options,
    images: []const Named = &.{},
    reports: []const Named = &.{},

    const Named = struct { name: []const u8, file: std.Build.LazyPath };

    fn addTo(self: CudaImages, module: *std.Build.Module) void {
        module.addOptions("cuda_options", self.options);
        for (self.images) |image| {
            module.addAnonymousImport(image.name, .{ .root_source_file = image.file });
        }
    }
};

/// Every image serves Hopper; the portable ones A100 and newer too, as code for 8.x and, for what
/// comes after Hopper, as PTX.
const hopper_code = "arch=compute_90a,code=sm_90a";
const portable_code = [_][]const u8{
    hopper_code,
    "arch=compute_80,code=sm_80",
    "arch=compute_80,code=compute_80",
};

fn cudaImages(b: *std.Build, nvcc: ?[]const u8) CudaImages {
    const options = b.addOptions();
    options.addOption(bool, "built", nvcc != null);
    const compiler = nvcc orelse return .{ .options = options };
    const modules = std.enums.values(Module);
    const images = b.allocator.alloc(CudaImages.Named, modules.len) catch @panic("out of memory");
    const reports = b.allocator.alloc(CudaImages.Named, modules.len) catch @panic("out of memory");
    const headers = cudaHeaders(b);
    for (images, reports, modules) |*image, *report, module| {
        const name = @tagName(module);
        const run = b.addSystemCommand(&.{ compiler, "-fatbin", "-std=c++20", "-O3", "-lineinfo" });
        run.setName(b.fmt("nvcc {s}.cu", .{name}));
        run.addArgs(&.{ "-Xptxas", "-v" });
        const codes: []const []const u8 = if (module.needsHopper())
            &.{hopper_code}
        else
            &portable_code;
        for (codes) |code| run.addArgs(&.{ "-gencode", code });
        run.addArg("-o");
        image.* = .{
            .name = b.fmt("{s}.fatbin", .{name}),
            .file = run.addOutputFileArg(b.fmt("{s}.fatbin", .{name})),
        };
        run.addFileArg(b.path(b.fmt("kernels/cuda/src/{s}.cu", .{name})));
        for (headers) |header| run.addFileInput(header);
        report.* = .{
            .name = b.fmt("cuda/{s}.txt", .{name}),
            .file = run.captureStdErr(.{}),
        };
    }
    return .{ .options = options, .images = images, .reports = reports };
}

/// Every file includes some of these.
fn cudaHeaders(b: *std.Build) []const std.Build.LazyPath {
    const io = b.graph.io;
    const path = "kernels/cuda/src";
    var folder = b.build_root.handle.openDir(io, path, .{ .iterate = true }) catch |err|
        std.debug.panic("cannot open {s}: {t}", .{ path, err });
    defer folder.close(io);
    var headers: std.ArrayList(std.Build.LazyPath) = .empty;
    var files = folder.iterate();
    while (files.next(io) catch @panic("cannot read " ++ path)) |file| {
        if (!std.mem.endsWith(u8, file.name, ".cuh")) continue;
        const header = b.path(b.fmt("{s}/{s}", .{ path, file.name }));
        headers.append(b.allocator, header) catch @panic("out of memory");
    }
    return headers.items;
}

fn addLevels(
    module: *std.Build.Module,
    names: *std.Build.Step.Options,
    objects: []const *std.Build.Step.Compile,
) void {
    module.addOptions("levels_options", names);
    for (objects) |object| module.addObject(object);
}

fn addTest(b: *std.Build, step: *std.Build.Step, name: []const u8, module: *std.Build.Module) void {
    step.dependOn(&b.addRunArtifact(b.addTest(.{ .name = name, .root_module = module })).step);
}

fn hostRuns(b: *std.Build, level: Level) bool {
    return b.graph.host.result.cpu.features.isSuperSetOf(std.Target.x86.featureSet(level.needs));
}

fn levelNames(b: *std.Build, levels: []const Level) []const []const u8 {
    const names = b.allocator.alloc([]const u8, levels.len) catch @panic("out of memory");
    for (names, levels) |*name, level| name.* = level.name;
    return names;
}

/// The CPU is always named: left out, it would be this machine's, and the library would run on no
/// other.
fn target(b: *std.Build, wanted: std.Target.Query, level: Level) std.Build.ResolvedTarget {
    var query = wanted;
    if (level.model) |model| {
        query.cpu_model = .{ .explicit = model };
        query.cpu_features_add = std.Target.x86.featureSet(level.add);
        // x86_64_v4 prefers 256-bit vectors; these kernels are written for 512.
        query.cpu_features_sub = std.Target.x86.featureSet(&.{.prefer_256_bit});
    } else {
        query.cpu_model = .baseline;
    }
    const os = wanted.os_tag orelse builtin.os.tag;
    if (os == .linux) {
        query.abi = .gnu;
        query.glibc_version = .{ .major = 2, .minor = 28, .patch = 0 };
    }
    return b.resolveTargetQuery(query);
}

fn compiledModule(
    b: *std.Build,
    root: []const u8,
    resolved: std.Build.ResolvedTarget,
    optimize: std.builtin.OptimizeMode,
) *std.Build.Module {
    return b.createModule(.{
        .root_source_file = b.path(root),
        .target = resolved,
        .optimize = optimize,
        .link_libc = true,
        .pic = true,
    });
}

fn levelObject(b: *std.Build, wanted: std.Target.Query, level: Level) *std.Build.Step.Compile {
    const module = compiledModule(
        b,
        "kernels/cpu_level.zig",
        target(b, wanted, level),
        .ReleaseFast,
    );
    module.strip = true;
    const options = b.addOptions();
    options.addOption([]const u8, "table_name", b.fmt("magicdec_level_{s}", .{level.name}));
    module.addOptions("level_options", options);
    return b.addObject(.{ .name = b.fmt("level_{s}", .{level.name}), .root_module = module });
}
