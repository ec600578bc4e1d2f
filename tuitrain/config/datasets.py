"""Settings of the picture sets and of the loaders that cut and caption them. Knows nothing of files or pixels."""

from typing import Annotated, Literal

from pydantic import Field

from tuitrain.config.settings import MAX_SIDE, Name, Number, Settings, Size, Text, Whole, about

_KEEP_IN_MEMORY = "Accepted for compatibility: pictures are read at each use; cache_vae_outputs is what saves the time."


class HFHubImageCaptionDatasetConfig(Settings):
    """Pictures and captions of a Hugging Face dataset."""

    type: Literal["HF_HUB_IMAGE_CAPTION_DATASET"] = Field(
        description="A Hugging Face dataset with a picture and a caption column; its train split is used.",
        json_schema_extra=about("dataset", tier="basic"),
    )
    dataset_name: Name = Field(
        description="Name on the Hub (owner/name), or a local folder that `datasets.load_dataset` can read.",
        json_schema_extra=about("dataset", tier="basic", path_kind="hub"),
    )
    dataset_config_name: Name | None = Field(
        default=None,
        description="Configuration of the dataset, for datasets that have several.",
        json_schema_extra=about("dataset"),
    )
    hf_cache_dir: Name | None = Field(
        default=None,
        description="Folder for downloaded datasets; null is the library's own (HF_HOME).",
        json_schema_extra=about("dataset", path_kind="folder"),
    )
    image_column: Name = Field(
        default="image", description="Column that holds the picture.", json_schema_extra=about("dataset")
    )
    caption_column: Name = Field(
        default="text", description="Column that holds the caption.", json_schema_extra=about("dataset")
    )


class ImageCaptionJsonlDatasetConfig(Settings):
    """Pictures and captions listed in a JSONL file."""

    type: Literal["IMAGE_CAPTION_JSONL_DATASET"] = Field(
        description="A JSONL file: one object a line with a picture's path, its caption, and perhaps its mask.",
        json_schema_extra=about("dataset", tier="basic"),
    )
    jsonl_path: Name = Field(
        description="The JSONL file. Picture paths in it are absolute or relative to its folder.",
        json_schema_extra=about("dataset", tier="basic", path_kind="file"),
    )
    image_column: Name = Field(
        default="image",
        description="Key of the picture's path in each line.",
        json_schema_extra=about("dataset", tier="basic"),
    )
    caption_column: Name = Field(
        default="text", description="Key of the caption in each line.", json_schema_extra=about("dataset", tier="basic")
    )
    keep_in_memory: bool = Field(
        default=False,
        description=_KEEP_IN_MEMORY,
        json_schema_extra=about("dataset"),
    )


class ImageCaptionDirDatasetConfig(Settings):
    """A flat folder of pictures, each with a .txt caption of the same name."""

    type: Literal["IMAGE_CAPTION_DIR_DATASET"] = Field(
        description="A flat folder of pictures; cat.jpg has its caption in cat.txt.",
        json_schema_extra=about("dataset", tier="basic"),
    )
    dataset_dir: Name = Field(
        description="The folder. Sub-folders are not read.",
        json_schema_extra=about("dataset", tier="basic", path_kind="folder"),
    )
    keep_in_memory: bool = Field(
        default=False,
        description=_KEEP_IN_MEMORY,
        json_schema_extra=about("dataset"),
    )


class ImageDirDatasetConfig(Settings):
    """A flat folder of pictures without captions."""

    type: Literal["IMAGE_DIR_DATASET"] = Field(
        default="IMAGE_DIR_DATASET",
        description="A flat folder of pictures without captions.",
        json_schema_extra=about("dataset"),
    )
    dataset_dir: Name = Field(
        description="The folder. Sub-folders are not read.",
        json_schema_extra=about("dataset", tier="basic", path_kind="folder"),
    )
    keep_in_memory: bool = Field(
        default=False,
        description=_KEEP_IN_MEMORY,
        json_schema_extra=about("dataset"),
    )


ImageCaptionDatasetConfig = Annotated[
    HFHubImageCaptionDatasetConfig | ImageCaptionJsonlDatasetConfig | ImageCaptionDirDatasetConfig,
    Field(discriminator="type"),
]


class AspectBucketConfig(Settings):
    """Training sizes of equal area and different shapes: for each height from start to end, the width that fits."""

    target_resolution: Whole = Field(
        examples=[1024],
        ge=1,
        le=MAX_SIDE,
        description="Side of the square whose area every bucket has. 1024 for SDXL.",
        json_schema_extra=about("dataset", unit="pixels", tier="basic", source="SDXL was trained at 1024 x 1024"),
    )
    start_dim: Whole = Field(
        examples=[512],
        ge=1,
        le=MAX_SIDE,
        description="Shortest side of the first bucket.",
        json_schema_extra=about("dataset", unit="pixels"),
    )
    end_dim: Whole = Field(
        examples=[1536],
        ge=1,
        le=MAX_SIDE,
        description="Last side tried from start_dim on; the other side follows from the area.",
        json_schema_extra=about("dataset", unit="pixels"),
    )
    divisible_by: Whole = Field(
        examples=[64],
        ge=1,
        le=MAX_SIDE,
        description="Step between sides; every side is a multiple of it. 64 or 128 for SDXL, at least 8.",
        json_schema_extra=about("dataset", unit="pixels"),
    )


class _DataLoaderSettings(Settings):
    """What both data loaders have."""

    # Named here so that it stands first in a written config; each loader narrows it to its own value.
    type: Literal["IMAGE_CAPTION_SD_DATA_LOADER", "DREAMBOOTH_SD_DATA_LOADER"]
    aspect_ratio_buckets: AspectBucketConfig | None = Field(
        default=None,
        description=(
            "Train pictures near their own shape rather than cropped to one. null crops all to resolution. Turn it on "
            "for a set with portraits and landscapes."
        ),
        json_schema_extra=about("dataset", tier="basic"),
    )
    resolution: Size = Field(
        default=512,
        description=(
            "Training size without buckets, and the size of validation pictures: a number for a square, or "
            "[height, width]. SDXL was trained at 1024."
        ),
        json_schema_extra=about("dataset", unit="pixels", tier="basic", source="invoke-training default"),
    )
    center_crop: bool = Field(
        default=True,
        description="Crop in the middle; false crops at random, which cache_vae_outputs does not allow.",
        json_schema_extra=about("dataset"),
    )
    random_flip: bool = Field(
        default=False,
        description=(
            "Mirror half of the pictures. Not for text, logos and faces you know; not with cache_vae_outputs."
        ),
        json_schema_extra=about("dataset"),
    )
    dataloader_num_workers: Whole = Field(
        default=0,
        ge=0,
        le=256,
        description="Processes that read pictures. 0 reads in the training thread; 4 helps without cache_vae_outputs.",
        json_schema_extra=about("dataset", unit="processes"),
    )

    @property
    def resolution_hw(self) -> tuple[int, int]:
        """`resolution` as (height, width) in pixels."""
        return self.resolution if isinstance(self.resolution, tuple) else (self.resolution, self.resolution)


class ImageCaptionDataLoaderConfig(_DataLoaderSettings):
    """Pictures with their own captions."""

    type: Literal["IMAGE_CAPTION_SD_DATA_LOADER"] = Field(
        description="Pictures that each have a caption.", json_schema_extra=about("dataset", tier="basic")
    )
    dataset: ImageCaptionDatasetConfig = Field(
        description="Where pictures and captions are.", json_schema_extra=about("dataset", tier="basic")
    )
    caption_prefix: Text | None = Field(
        default=None,
        description=(
            "Put before every caption, joined by one space. A phrase you will prompt with, such as "
            '"In the robocat style,".'
        ),
        json_schema_extra=about("captions", tier="basic"),
    )


class DreamboothDataLoaderConfig(_DataLoaderSettings):
    """Pictures of one subject under one caption, perhaps with pictures of its class."""

    type: Literal["DREAMBOOTH_SD_DATA_LOADER"] = Field(
        description="Pictures of one subject that share one caption.",
        json_schema_extra=about("dataset", tier="basic", source="arXiv 2208.12242"),
    )
    instance_caption: Name = Field(
        description='Caption of every picture of the subject: "a photo of sks dog".',
        json_schema_extra=about("captions", tier="basic"),
    )
    class_caption: Name | None = Field(
        default=None,
        description='Caption of every picture of the class: "a photo of a dog". Needed with class_dataset.',
        json_schema_extra=about("captions", tier="basic"),
    )
    instance_dataset: ImageDirDatasetConfig = Field(
        description="Pictures of the subject.", json_schema_extra=about("dataset", tier="basic")
    )
    class_dataset: ImageDirDatasetConfig | None = Field(
        default=None,
        description="Pictures of the class, which keep the model from taking every dog for yours. null trains without.",
        json_schema_extra=about("dataset", tier="basic"),
    )
    class_data_loss_weight: Number = Field(
        default=1.0,
        ge=0,
        description="Weight of the class pictures in the loss; the subject's weigh 1.",
        json_schema_extra=about("loss"),
    )


DataLoaderConfig = Annotated[
    ImageCaptionDataLoaderConfig | DreamboothDataLoaderConfig,
    Field(discriminator="type"),
]
