//! Every compute pipeline, made once, and how one is dispatched.

use crate::device::now;
use crate::products::{Matrices, PassedOver, Products, Shaders};
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
    pub(crate) sources: Vec<&'static str>,
    pub(crate) entry: &'static str,
    pub(crate) bindings: &'static [Use],
    /// Lanes of a workgroup, where the source leaves them open.
    pub(crate) lanes: Option<u32>,
}

const SHARED: &str = include_str!("kernels/reduce_shared.wgsl");
const SUBGROUP: &str = include_str!("kernels/reduce_subgroup.wgsl");
const ACTIVATION: &str = include_str!("kernels/activation.wgsl");
const LINEAR: &str = include_str!("kernels/linear.wgsl");
const WEIGHTS_F32: &str = include_str!("kernels/weights_f32.wgsl");
const WEIGHTS_F16: &str = include_str!("kernels/weights_f16.wgsl");
const GEMV: &str = include_str!("kernels/gemv.wgsl");
const GEMM: &str = include_str!("kernels/gemm.wgsl");
const TALL: &str = include_str!("kernels/gemm_tall.wgsl");
const SHORT: &str = include_str!("kernels/gemm_short.wgsl");
const SINGLES: &str = include_str!("kernels/singles.wgsl");
const ENABLE_HALVES: &str = "enable f16;\n";
const HALVES: &str = include_str!("kernels/halves.wgsl");
const ENABLE_MATRICES: &str = "enable wgpu_cooperative_matrix;\n";
const MATRIX_8: &str = include_str!("kernels/matrix_8.wgsl");
const MATRIX_16: &str = include_str!("kernels/matrix_16.wgsl");
const GEMM_COOPERATIVE: &str = include_str!("kernels/gemm_cooperative.wgsl");
const ROWS: &str = include_str!("kernels/rows.wgsl");
const ATTENTION: &str = include_str!("kernels/attention.wgsl");
const ATTEND: &str = include_str!("kernels/attend.wgsl");
const ELEMENTS: &str = include_str!("kernels/elements.wgsl");
const LOOKUP: &str = include_str!("kernels/lookup.wgsl");
const POOL: &str = include_str!("kernels/pool.wgsl");
const CONV: &str = include_str!("kernels/conv.wgsl");

/// Declares the kernels: name, entry point, bindings, sources. `reduce` stands for one of the two ways to reduce, `matrix`
/// for one of the two sizes of a subgroup's matrices.
macro_rules! kernels {
    ($( $name:ident = $entry:literal [$($use:ident),*] from $($source:ident),+ ; )*) => {
        /// A kernel.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Kernel { $( $name, )* }

        impl Kernel {
            /// All of them, in the order of their numbers.
            pub(crate) const ALL: &[Kernel] = &[$( Kernel::$name, )*];

            fn recipe(self, shaders: Shaders, matrices: Option<Matrices>) -> Recipe {
                match self {
                    $( Kernel::$name => Recipe {
                        sources: vec![$( kernels!(@source shaders matrices $source) ),+],
                        entry: $entry,
                        bindings: &[$($use),*],
                        lanes: None,
                    }, )*
                }
            }
        }
    };
    (@source $shaders:ident $matrices:ident reduce) => { if $shaders.subgroups { SUBGROUP } else { SHARED } };
    (@source $shaders:ident $matrices:ident matrix) => {
        if $matrices.is_some_and(|matrices| matrices.edge == 8) { MATRIX_8 } else { MATRIX_16 }
    };
    (@source $shaders:ident $matrices:ident $source:ident) => { $source };
}

kernels! {
    TallF32 = "gemm" [Read, Read, Read, Write] from ACTIVATION, LINEAR, SINGLES, WEIGHTS_F32, TALL, GEMM;
    TallF16 = "gemm" [Read, Read, Read, Write] from ACTIVATION, LINEAR, SINGLES, WEIGHTS_F16, TALL, GEMM;
    ShortF32 = "gemm" [Read, Read, Read, Write] from ACTIVATION, LINEAR, SINGLES, WEIGHTS_F32, SHORT, GEMM;
    ShortF16 = "gemm" [Read, Read, Read, Write] from ACTIVATION, LINEAR, SINGLES, WEIGHTS_F16, SHORT, GEMM;
    TallHalves = "gemm" [Read, Read, Read, Write]
        from ENABLE_HALVES, ACTIVATION, LINEAR, HALVES, WEIGHTS_F16, TALL, GEMM;
    ShortHalves = "gemm" [Read, Read, Read, Write]
        from ENABLE_HALVES, ACTIVATION, LINEAR, HALVES, WEIGHTS_F16, SHORT, GEMM;
    Cooperative = "gemm" [Read, Read, Read, Write]
        from ENABLE_HALVES, ENABLE_MATRICES, ACTIVATION, LINEAR, HALVES, WEIGHTS_F16, matrix, GEMM_COOPERATIVE;
    GemvF32 = "gemv" [Read, Read, Read, Write] from reduce, ACTIVATION, LINEAR, SINGLES, WEIGHTS_F32, GEMV;
    GemvF16 = "gemv" [Read, Read, Read, Write] from reduce, ACTIVATION, LINEAR, SINGLES, WEIGHTS_F16, GEMV;
    LayerNorm = "layer_norm" [Write, Read, Read, Read] from reduce, ROWS;
    LayerNormTo = "layer_norm_to" [Read, Write, Read, Read] from reduce, ROWS;
    RmsNorm = "rms_norm" [Read, Read, Write] from reduce, ROWS;
    Normalize = "normalize" [Write] from reduce, ROWS;
    Softmax = "softmax" [Write] from reduce, ROWS;
    Argmax = "argmax" [Read, Write] from reduce, ROWS;
    Attention = "attention" [Read, Read, Write] from reduce, ATTENTION;
    Attend = "attend" [Read, Read, Write] from reduce, ATTEND;
    LookupF32 = "lookup_f32" [Read, Read, Write] from LOOKUP;
    LookupF16 = "lookup_f16" [Read, Read, Write] from LOOKUP;
    PoolMean = "mean" [Read, Read, Write] from POOL;
    PoolFirst = "first" [Read, Read, Write] from POOL;
    Add = "add" [Write, Read] from ACTIVATION, ELEMENTS;
    Activate = "activate_all" [Write] from ACTIVATION, ELEMENTS;
    Rope = "rope" [Write, Read, Read] from ACTIVATION, ELEMENTS;
    Conv1d = "conv1d" [Read, Read, Read, Write] from ACTIVATION, CONV;
    Unfold = "unfold" [Read, Write] from ACTIVATION, CONV;
}

impl Kernel {
    /// How it multiplies: the first kind that has it.
    fn products(self) -> Products {
        match self {
            Self::TallHalves | Self::ShortHalves => Products::Halves,
            Self::Cooperative => Products::Cooperative,
            _ => Products::Singles,
        }
    }
}

/// One compute pipeline.
#[derive(Debug)]
pub(crate) struct Pipeline {
    raw: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
    bindings: usize,
}

/// The pipelines of a device, in the order of [`Kernel::ALL`]; none of a kernel that the device was opened without, or
/// that its driver refused.
#[derive(Debug)]
pub(crate) struct Pipelines(Vec<Option<Pipeline>>);

impl Pipelines {
    /// Makes them; the driver compiles at the first dispatch of each.
    pub(crate) fn new(
        device: &wgpu::Device,
        shaders: Shaders,
        matrices: Option<Matrices>,
        passed_over: &mut Vec<PassedOver>,
    ) -> Self {
        let mut make = |kernel: &Kernel| {
            let products = kernel.products();
            if products > shaders.products {
                return None;
            }
            let mut recipe = kernel.recipe(shaders, matrices);
            if *kernel == Kernel::Cooperative {
                recipe.lanes = matrices.map(|matrices| matrices.lanes);
            }
            if products == Products::Singles {
                return Some(Pipeline::new(device, &recipe));
            }
            // One that can be done without may be refused.
            let scopes =
                [wgpu::ErrorFilter::Validation, wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::OutOfMemory]
                    .map(|filter| device.push_error_scope(filter));
            let pipeline = Pipeline::new(device, &recipe);
            let errors: Vec<wgpu::Error> =
                scopes.into_iter().rev().filter_map(|scope| now(scope.pop())).collect();
            match errors.first() {
                None => Some(pipeline),
                Some(error) => {
                    passed_over.push(PassedOver { products, reason: error.to_string() });
                    None
                }
            }
        };
        Self(Kernel::ALL.iter().map(&mut make).collect())
    }

    /// Buffers that a kernel is bound to; nothing if there is no such kernel here.
    pub(crate) fn bindings(&self, kernel: Kernel) -> Option<usize> {
        self.0[kernel as usize].as_ref().map(|pipeline| pipeline.bindings)
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
        let pipeline = self.0[kernel as usize].as_ref().expect("only kernels that are there are asked for");
        pipeline.dispatch(device, encoder, buffers, parameters, groups);
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
        let lanes = recipe.lanes.map(|lanes| ("LANES", f64::from(lanes)));
        // Workgroup memory stays zeroed at the start (the default): what another process left there can't be read.
        let raw = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(recipe.entry),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(recipe.entry),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: lanes.as_slice(),
                ..wgpu::PipelineCompilationOptions::default()
            },
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
