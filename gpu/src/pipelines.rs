//! Every compute pipeline, made once, and how one is dispatched.

use std::num::NonZeroU64;

/// Bytes of parameters that a kernel takes beside its buffers: part of the command, no buffer.
pub(crate) const PARAMETER_BYTES: u32 = 48;
/// Bindings of the kernel that has most.
pub(crate) const BINDINGS_MAX: usize = 5;
/// Bytes of the smallest buffer: one element of any kernel's.
pub(crate) const BUFFER_BYTES_MIN: u64 = 8;
/// Workgroups along one dimension, the least that Vulkan guarantees.
const GROUPS_MAX: u64 = 65_535;

/// How a kernel uses a buffer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    Read,
    Write,
}
use Use::{Read, Write};

/// What a kernel is made from.
pub(crate) struct Recipe {
    /// Parts of its source, one after another.
    pub(crate) sources: &'static [&'static str],
    pub(crate) entry: &'static str,
    pub(crate) bindings: &'static [Use],
}

const SHARED: &str = include_str!("kernels/reduce_shared.wgsl");
const SUBGROUP: &str = include_str!("kernels/reduce_subgroup.wgsl");
const ACTIVATION: &str = include_str!("kernels/activation.wgsl");
const TALL: &str = include_str!("kernels/gemm_tall.wgsl");
const SHORT: &str = include_str!("kernels/gemm_short.wgsl");
const LINEAR: &str = include_str!("kernels/linear.wgsl");
const WEIGHTS_F32: &str = include_str!("kernels/weights_f32.wgsl");
const WEIGHTS_F16: &str = include_str!("kernels/weights_f16.wgsl");
const ROWS: &str = include_str!("kernels/rows.wgsl");
const ATTENTION: &str = include_str!("kernels/attention.wgsl");
const ELEMENTS: &str = include_str!("kernels/elements.wgsl");
const LOOKUP: &str = include_str!("kernels/lookup.wgsl");
const POOL: &str = include_str!("kernels/pool.wgsl");
const CONV: &str = include_str!("kernels/conv.wgsl");

/// Declares the kernels: name, entry point, bindings, sources. `reduce` stands for one of the two ways to reduce.
macro_rules! kernels {
    ($( $name:ident = $entry:literal [$($use:ident),*] from $($source:ident),+ ; )*) => {
        /// A kernel.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Kernel { $( $name, )* }

        impl Kernel {
            /// All of them, in the order of their numbers.
            pub(crate) const ALL: &[Kernel] = &[$( Kernel::$name, )*];

            fn recipe(self, reduce: &'static Reduce) -> Recipe {
                match self {
                    $( Kernel::$name => Recipe {
                        sources: kernels!(@sources reduce $($source),+),
                        entry: $entry,
                        bindings: &[$($use),*],
                    }, )*
                }
            }
        }
    };
    (@sources $reduce:ident reduce, $a:ident) => { if $reduce.subgroups { &[SUBGROUP, $a] } else { &[SHARED, $a] } };
    (@sources $reduce:ident reduce, $a:ident, $b:ident, $c:ident, $d:ident) => {
        if $reduce.subgroups { &[SUBGROUP, $a, $b, $c, $d] } else { &[SHARED, $a, $b, $c, $d] }
    };
    (@sources $reduce:ident $($source:ident),+) => { &[$($source),+] };
}

/// How the lanes of a workgroup add up.
struct Reduce {
    subgroups: bool,
}

kernels! {
    TallF32 = "gemm" [Read, Read, Read, Write] from reduce, ACTIVATION, WEIGHTS_F32, TALL, LINEAR;
    TallF16 = "gemm" [Read, Read, Read, Write] from reduce, ACTIVATION, WEIGHTS_F16, TALL, LINEAR;
    ShortF32 = "gemm" [Read, Read, Read, Write] from reduce, ACTIVATION, WEIGHTS_F32, SHORT, LINEAR;
    ShortF16 = "gemm" [Read, Read, Read, Write] from reduce, ACTIVATION, WEIGHTS_F16, SHORT, LINEAR;
    GemvF32 = "gemv" [Read, Read, Read, Write] from reduce, ACTIVATION, WEIGHTS_F32, SHORT, LINEAR;
    GemvF16 = "gemv" [Read, Read, Read, Write] from reduce, ACTIVATION, WEIGHTS_F16, SHORT, LINEAR;
    LayerNorm = "layer_norm" [Write, Read, Read, Read] from reduce, ROWS;
    RmsNorm = "rms_norm" [Read, Read, Write] from reduce, ROWS;
    Normalize = "normalize" [Write] from reduce, ROWS;
    Softmax = "softmax" [Write] from reduce, ROWS;
    Argmax = "argmax" [Read, Write] from reduce, ROWS;
    Attention = "attention" [Read, Read, Write] from reduce, ATTENTION;
    LookupF32 = "lookup_f32" [Read, Read, Write] from LOOKUP;
    LookupF16 = "lookup_f16" [Read, Read, Write] from LOOKUP;
    PoolMean = "mean" [Read, Read, Write] from POOL;
    PoolFirst = "first" [Read, Read, Write] from POOL;
    Add = "add" [Write, Read] from ACTIVATION, ELEMENTS;
    Activate = "activate_all" [Write] from ACTIVATION, ELEMENTS;
    Rope = "rope" [Write, Read, Read] from ACTIVATION, ELEMENTS;
    Conv1d = "conv1d" [Read, Read, Read, Write] from ACTIVATION, CONV;
}

/// One compute pipeline.
#[derive(Debug)]
pub(crate) struct Pipeline {
    raw: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
    bindings: usize,
}

/// All pipelines of a device.
#[derive(Debug)]
pub(crate) struct Pipelines(Vec<Pipeline>);

impl Pipelines {
    /// Makes them; the driver compiles at the first dispatch of each.
    pub(crate) fn new(device: &wgpu::Device, subgroups: bool) -> Self {
        let reduce: &'static Reduce =
            if subgroups { &Reduce { subgroups: true } } else { &Reduce { subgroups: false } };
        Self(Kernel::ALL.iter().map(|kernel| Pipeline::new(device, &kernel.recipe(reduce))).collect())
    }

    /// Buffers that a kernel is bound to.
    pub(crate) fn bindings(&self, kernel: Kernel) -> usize {
        self.0[kernel as usize].bindings
    }

    /// Records a kernel over this many workgroups; none is nothing.
    pub(crate) fn dispatch(
        &self,
        device: &wgpu::Device,
        encoder: &mut wgpu::CommandEncoder,
        kernel: Kernel,
        buffers: &[&wgpu::Buffer],
        parameters: &Parameters,
        groups: u64,
    ) {
        self.0[kernel as usize].dispatch(device, encoder, buffers, parameters, groups);
    }
}

impl Pipeline {
    /// Records it over this many workgroups; none is nothing.
    pub(crate) fn dispatch(
        &self,
        device: &wgpu::Device,
        encoder: &mut wgpu::CommandEncoder,
        buffers: &[&wgpu::Buffer],
        parameters: &Parameters,
        groups: u64,
    ) {
        assert_eq!(buffers.len(), self.bindings, "bindings");
        assert!(groups <= GROUPS_MAX * GROUPS_MAX, "{groups} workgroups");
        if groups == 0 {
            return;
        }
        let entries: Vec<wgpu::BindGroupEntry<'_>> = (0..)
            .zip(buffers)
            .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
            .collect();
        let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &self.layout,
            entries: &entries,
        });
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&self.raw);
        pass.set_bind_group(0, &group, &[]);
        pass.set_immediates(0, &parameters.bytes());
        // A shader joins both numbers into one and ignores what is beyond the last.
        let across = groups.min(GROUPS_MAX);
        pass.dispatch_workgroups(across as u32, groups.div_ceil(across) as u32, 1);
    }

    pub(crate) fn new(device: &wgpu::Device, recipe: &Recipe) -> Self {
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(recipe.entry),
            source: wgpu::ShaderSource::Wgsl(recipe.sources.concat().into()),
        });
        let entries: Vec<wgpu::BindGroupLayoutEntry> =
            (0..).zip(recipe.bindings).map(|(binding, kind)| layout_entry(binding, *kind)).collect();
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(recipe.entry),
            entries: &entries,
        });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(recipe.entry),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: PARAMETER_BYTES,
        });
        // Workgroup memory stays zeroed at the start (the default): what another process left there can't be read.
        let raw = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(recipe.entry),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(recipe.entry),
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        });
        Self { raw, layout, bindings: entries.len() }
    }
}

fn layout_entry(binding: u32, kind: Use) -> wgpu::BindGroupLayoutEntry {
    wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Storage { read_only: kind == Read },
            has_dynamic_offset: false,
            min_binding_size: NonZeroU64::new(BUFFER_BYTES_MIN),
        },
        count: None,
    }
}

/// A kernel's parameters: words, as its source names them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Parameters {
    words: [u32; PARAMETER_BYTES as usize / 4],
    filled: usize,
}

impl Parameters {
    /// Counts, which fit since each buffer's elements fit into 32 bits.
    pub(crate) fn new(numbers: &[usize]) -> Self {
        numbers.iter().fold(Self::default(), |all, number| {
            all.word(u32::try_from(*number).expect("elements of a buffer are counted in 32 bits"))
        })
    }

    pub(crate) fn float(self, float: f32) -> Self {
        self.word(float.to_bits())
    }

    pub(crate) fn word(mut self, word: u32) -> Self {
        self.words[self.filled] = word;
        self.filled += 1;
        self
    }

    fn bytes(&self) -> [u8; PARAMETER_BYTES as usize] {
        let mut bytes = [0; PARAMETER_BYTES as usize];
        for (place, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(self.words) {
            *place = word.to_ne_bytes();
        }
        bytes
    }
}
