# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Public ultrasound data sets: what they are, where to get them, and how their layout is read.

A table and no downloads: most of them want a registration, and every one a look at its licence. "unknown" is a licence
that couldn't be confirmed, and is what stands in the corpus then; counts are images or frames as others counted them.
"""

import functools
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from . import importers
from .annotations import Annotation, Read


Annotate = Callable[[Sequence[str], Read], dict[str, Annotation]]


@dataclass(frozen=True)
class PublicDataset:
    """
    Attributes:
        key: its name in commands, and in the column `source` of a corpus.
        title: as its authors write it.
        organs: keys of `ORGANS`; none where its regions aren't known here.
        count: images, or frames, as text.
        where: where to get it.
        licence: "unknown" unless it was confirmed; read the source's own terms in any case.
        citation: what to cite, where known.
        labels, views: closed lists of what `annotate` may give.
        annotate: the importer (see `importers`), or None when the data set is only listed.
        note: what else a user must know.
    """

    key: str
    title: str
    organs: tuple[str, ...]
    count: str
    where: str
    licence: str = "unknown"
    citation: str | None = None
    labels: tuple[str, ...] = ()
    views: tuple[str, ...] = ()
    annotate: Annotate | None = None
    note: str = ""


CC_BY = "CC BY 4.0"
_THROUGH_ULTRABENCH = "run `ultrabench process` on it, and import what that writes as ultrabench"

_DATASETS = (
    PublicDataset(
        "radimagenet-us",
        "RadImageNet, ultrasound part",
        (),
        "389,884",
        "radimagenet.com (on request)",
        citation="Mei et al., RadImageNet: An Open Radiologic Deep Learning Research Dataset for Effective Transfer "
        "Learning, Radiology: Artificial Intelligence, 2022",
        note="12 regions",
    ),
    # ---- heart
    PublicDataset(
        "echonet-dynamic",
        "EchoNet-Dynamic",
        ("heart",),
        "1,770,636 frames",
        "echonet.github.io; Stanford AIMI",
        citation="Ouyang et al., Video-based AI for beat-to-beat assessment of cardiac function, Nature 580, 2020",
        views=("4CH",),
        annotate=importers.echonet_dynamic,
    ),
    PublicDataset(
        "echonet-pediatric", "EchoNet-Pediatric", ("heart",), "15,450 frames", "echonet.github.io; Stanford AIMI"
    ),
    PublicDataset("echonet-lvh", "EchoNet-LVH", ("heart",), "1,957,928 frames", "echonet.github.io; Stanford AIMI"),
    PublicDataset(
        "camus",
        "CAMUS",
        ("heart",),
        "19,232",
        "humanheart-project.creatis.insa-lyon.fr",
        citation="Leclerc et al., Deep Learning for Segmentation Using an Open Large-Scale Dataset in 2D "
        "Echocardiography, IEEE Transactions on Medical Imaging 38(9), 2019, doi 10.1109/TMI.2019.2900516",
        labels=importers.CAMUS_LABELS,
        views=importers.CAMUS_VIEWS,
        annotate=importers.camus,
        note="the label is the image quality",
    ),
    PublicDataset(
        "cardiacudc",
        "CardiacUDC",
        ("heart",),
        "38,071",
        "Kaggle xiaoweixumedicalai",
        citation="Yang et al., GraphEcho, ICCV 2023, arXiv 2309.11145",
    ),
    PublicDataset("cactus", "CACTUS", ("heart",), "37,736", "GitHub coding-groot/cactus"),
    # ---- neck
    PublicDataset("cca-ui", "CCA-UI", ("carotid",), "1,100", "Mendeley d4xt63mgjm"),
    PublicDataset("segthy", "SegThy", ("thyroid",), "136,243", "cs.cit.tum.de/camp (SegThy)"),
    PublicDataset(
        "stanford-thyroid",
        "Stanford Thyroid Cine",
        ("thyroid",),
        "17,412",
        "Stanford AIMI",
        note=_THROUGH_ULTRABENCH,
    ),
    PublicDataset(
        "tn3k",
        "TN3K",
        ("thyroid",),
        "3,493",
        "GitHub haifangong/TRFE-Net",
        citation="Gong et al., Multi-Task Learning for Thyroid Nodule Segmentation with Thyroid Region Prior, ISBI 2021",
        labels=("benign", "malignant"),
        annotate=importers.tn3k,
    ),
    PublicDataset(
        "tg3k",
        "TG3K",
        ("thyroid",),
        "3,585",
        "GitHub haifangong/TRFE-Net",
        annotate=importers.tg3k,
    ),
    PublicDataset(
        "ddti",
        "DDTI",
        ("thyroid",),
        "637",
        "GitHub haifangong/TRFE-Net; openmedlab list",
        citation="Pedraza et al., An open access thyroid ultrasound image database, Proc. SPIE 9287, 2015",
        labels=importers.TI_RADS_LABELS,
        annotate=importers.ddti,
    ),
    PublicDataset("tn5000", "TN5000", ("thyroid",), "5,000", "GitHub haifangong/TRFE-Net; openmedlab list"),
    # ---- breast
    PublicDataset(
        "busi",
        "BUSI",
        ("breast",),
        "780",
        "scholar.cu.edu.eg",
        citation="Al-Dhabyani et al., Dataset of breast ultrasound images, Data in Brief 28, 2020, "
        "doi 10.1016/j.dib.2019.104863",
        labels=importers.TUMOUR_LABELS,
        annotate=importers.busi,
        note="no patients are published, and many images are duplicates",
    ),
    PublicDataset(
        "bus-bra",
        "BUS-BRA",
        ("breast",),
        "1,875",
        "Zenodo 8231412",
        CC_BY,
        "Gómez-Flores et al., BUS-BRA: A breast ultrasound dataset for assessing computer-aided diagnosis systems, "
        "Medical Physics, 2024, doi 10.1002/mp.16812",
        labels=("benign", "malignant"),
        annotate=importers.bus_bra,
    ),
    PublicDataset("bus-uc", "BUS-UC", ("breast",), "811", "Mendeley 3ksd7w7jkx"),
    PublicDataset(
        "bus-uclm",
        "BUS-UCLM",
        ("breast",),
        "683",
        "Mendeley 7fvgj4jsp7",
        citation="Vallez et al., BUS-UCLM: Breast ultrasound lesion segmentation dataset, Scientific Data, 2025, "
        "doi 10.1038/s41597-025-04562-3",
        labels=importers.TUMOUR_LABELS,
        annotate=importers.bus_uclm,
    ),
    PublicDataset(
        "breast-lesions-usg",
        "BrEaST",
        ("breast",),
        "256",
        "TCIA",
        CC_BY,
        "Pawłowska et al., Curated benchmark dataset for ultrasound based breast lesion analysis, Scientific Data, "
        "2024, doi 10.1038/s41597-024-02984-z",
        labels=importers.TUMOUR_LABELS,
        annotate=importers.breast_lesions_usg,
        note="for labels, export the spreadsheet BrEaST-Lesions-USG-clinical-data*.xlsx as CSV beside the images",
    ),
    PublicDataset(
        "buv",
        "BUV (video)",
        ("breast",),
        "25,026",
        "authors' page",
        citation="Lin et al., A New Dataset and a Baseline Model for Breast Lesion Detection in Ultrasound Videos, "
        "MICCAI 2022",
    ),
    PublicDataset("abus-tdsc", "ABUS-TDSC (3D)", ("breast",), "44,474", "authors' page"),
    # ---- fetus
    PublicDataset(
        "fetal-planes-db",
        "FETAL_PLANES_DB",
        ("fetus", "cervix"),
        "12,400",
        "Zenodo 3904280",
        CC_BY,
        "Burgos-Artizzu et al., Evaluation of deep convolutional neural networks for automatic classification of common "
        "maternal fetal ultrasound planes, Scientific Reports 10, 10200, 2020, doi 10.1038/s41598-020-67076-5",
        labels=importers.FETAL_PLANES,
        views=importers.FETAL_BRAIN_PLANES,
        annotate=importers.fetal_planes_db,
    ),
    PublicDataset(
        "hc18",
        "HC18",
        ("fetus",),
        "1,334",
        "Zenodo 1327317",
        CC_BY,
        "van den Heuvel et al., Automated measurement of fetal head circumference using 2D ultrasound images, "
        "PLOS ONE, 2018, doi 10.1371/journal.pone.0200412",
        views=("head",),
        annotate=importers.hc18,
    ),
    PublicDataset("acouslic", "ACOUSLIC", ("fetus",), "6,620", "Zenodo 12697994"),
    PublicDataset(
        "psfhs",
        "PSFHS",
        ("fetus",),
        "1,358",
        "Zenodo 10969427",
        citation="Chen et al., PSFHS: Intrapartum ultrasound image dataset for AI-based segmentation of pubic symphysis "
        "and fetal head, Scientific Data, 2024, doi 10.1038/s41597-024-03266-4",
        annotate=importers.psfhs,
    ),
    # ---- abdomen
    PublicDataset(
        "aul",
        "AUL, annotated ultrasound liver",
        ("liver",),
        "735",
        "Zenodo 7272660",
        citation="Xu et al., Briefings in Bioinformatics, 2023, doi 10.1093/bib/bbac569",
        labels=importers.TUMOUR_LABELS,
        annotate=importers.aul,
    ),
    PublicDataset(
        "fatty-liver",
        "Fatty liver (Byra)",
        ("liver",),
        "550",
        "Zenodo 1009146",
        citation="Byra et al., Transfer learning with deep convolutional neural network for liver steatosis assessment in "
        "ultrasound images, IJCARS, 2018, doi 10.1007/s11548-018-1843-2",
        note="images in a MATLAB file: " + _THROUGH_ULTRABENCH,
    ),
    PublicDataset("105us", "105US", ("liver",), "105", "ResearchGate"),
    PublicDataset("sysu-ceus-fll", "SYSU-CEUS-FLL", ("liver",), "110,654", "authors"),
    PublicDataset("bmode-ceus-liver", "B-mode and CEUS liver", ("liver",), "126,543", "TCIA"),
    PublicDataset(
        "open-kidney",
        "Open Kidney",
        ("kidney",),
        "500",
        "GitHub rsingla92/kidneyUS",
        citation="Singla et al., The Open Kidney Ultrasound Data Set, ASMUS 2023, doi 10.1007/978-3-031-44521-7_15",
        views=importers.OPEN_KIDNEY_VIEWS,
        annotate=importers.open_kidney,
    ),
    PublicDataset("trusted", "TRUSTED (3D)", ("kidney",), "7,280", "authors"),
    PublicDataset(
        "gbcu",
        "GBCU",
        ("gallbladder",),
        "1,255",
        "gbc-iitd.github.io",
        citation="Basu et al., Surpassing the Human Accuracy: Detecting Gallbladder Cancer from USG Images with "
        "Curriculum Learning, CVPR 2022",
        labels=importers.TUMOUR_LABELS,
        annotate=importers.gbcu,
    ),
    PublicDataset("gb1", "GB1", ("gallbladder",), "10,692", "gbc-iitd.github.io"),
    PublicDataset("lepset", "LEPset", ("pancreas",), "11,493", "authors"),
    PublicDataset("gist514-db", "GIST514-DB", ("gastrointestinal",), "514 (43,656 fr.)", "GitHub howardchina/query2"),
    # ---- pelvis
    PublicDataset(
        "mmotu",
        "MMOTU",
        ("ovary",),
        "1,469",
        "GitHub cv516Buaa/MMOTU_DS2Net",
        citation="Zhao et al., A Multi-Modality Ovarian Tumor Ultrasound Image Dataset for Unsupervised Cross-Domain "
        "Semantic Segmentation, 2022, arXiv 2207.06799",
        labels=importers.MMOTU_LABELS,
        annotate=importers.mmotu,
    ),
    PublicDataset("pcos-us", "PCOS_US", ("ovary",), "3,841", "authors"),
    PublicDataset("uf1990", "UF1990", ("uterus",), "1,990", "authors"),
    PublicDataset("prostate-mri-us-biopsy", "Prostate-MRI-US-Biopsy", ("prostate",), "219,484", "TCIA"),
    PublicDataset("prostate-trus", "ProstateTRUS", ("prostate",), "5,037", "authors"),
    PublicDataset("microseg", "MicroSeg", ("prostate",), "2,910", "Zenodo 10475293"),
    # ---- lung
    PublicDataset(
        "pocus",
        "POCUS (covid19_ultrasound)",
        ("lung",),
        "2,128",
        "GitHub jannisborn/covid19_ultrasound",
        citation="Born et al., Accelerating Detection of Lung Pathologies with Explainable Ultrasound Image Analysis, "
        "Applied Sciences 11(2), 672, 2021, doi 10.3390/app11020672",
        labels=importers.POCUS_LABELS,
        annotate=importers.pocus,
        note="most files are CC BY-NC 4.0, some have no licence: dataset_metadata.csv names it for each",
    ),
    PublicDataset("covidx-us", "COVIDx-US", ("lung",), "22,697", "GitHub nrc-cnrc/COVID-US"),
    PublicDataset("covid-blues", "COVID-BLUES", ("lung",), "31,696", "GitHub NinaWie/COVID-BLUES"),
    # ---- nerve, muscle, brain, several
    PublicDataset("brachial-plexus", "Brachial plexus", ("nerve",), "40,788", "GitHub Regional-US/brachial_plexus"),
    PublicDataset(
        "us-nerve-segmentation",
        "Ultrasound Nerve Segmentation",
        ("nerve",),
        "11,134",
        "Kaggle",
        annotate=importers.us_nerve_segmentation,
    ),
    PublicDataset("stmus-nda", "STMUS_NDA", ("muscle",), "4,355", "Mendeley 3jykz7wz8d"),
    PublicDataset("fallmud", "FALLMUD", ("muscle",), "813", "kalisteo.cea.fr"),
    PublicDataset("luminous", "LUMINOUS", ("muscle",), "341", "Concordia"),
    PublicDataset("remind", "ReMIND", ("brain",), "18,734", "TCIA"),
    PublicDataset(
        "butterfly",
        "Butterfly",
        ("heart", "lung", "carotid", "thyroid", "bladder", "vessel", "abdomen"),
        "41,076",
        "GitHub ButterflyNetwork/MITGrandHack2018",
        labels=importers.BUTTERFLY_LABELS,
        views=(*importers.CAMUS_VIEWS, "PLAX"),
        annotate=importers.butterfly,
    ),
)

# Its images keep the licence of the data set that each comes from.
_ULTRABENCH = PublicDataset(
    "ultrabench",
    "UltraBench (output of `ultrabench process`)",
    (),
    "14 tasks",
    "PyPI ultrabench; the data from each source",
    citation="Tupper and Gagné, Revisiting Data Augmentation for Ultrasound Images, TMLR, 2025",
    labels=importers.ULTRABENCH_LABELS,
    views=importers.ULTRABENCH_VIEWS,
    annotate=functools.partial(importers.ultrabench, licences={d.key: d.licence for d in _DATASETS}),
    note="version 1.0.1; a user of its benchmark must not train on its test images: see --exclude",
)

PUBLIC: dict[str, PublicDataset] = {dataset.key: dataset for dataset in (*_DATASETS, _ULTRABENCH)}


def find_public(name: str) -> PublicDataset:
    """The data set of this name, whatever the case and the signs: "BUS-BRA", "busbra". ValueError names the nearest."""
    from ..configuration_urfm import nearest_name

    keys = {re.sub(r"[\W_]+", "", key): key for key in PUBLIC}
    plain = re.sub(r"[\W_]+", "", name.lower())
    if plain in keys:
        return PUBLIC[keys[plain]]
    raise ValueError(
        f"no public data set is called {name!r}: did you mean {nearest_name(name, PUBLIC)!r}? "
        "recipes/prepare.py --list names them all"
    )


def list_table(width: int = 120) -> str:
    """The table that `recipes/prepare.py --list` prints: a line for each data set, at most `width` characters wide."""
    rows = [("name", "organ", "count", "import", "licence", "where")]
    for d in PUBLIC.values():
        organ = ", ".join(d.organs) if len(d.organs) in (1, 2) else "several"
        rows.append((d.key, organ, d.count, "yes" if d.annotate else "-", d.licence, d.where))
    sizes = [max(len(row[column]) for row in rows) for column in range(5)]
    indent = sum(sizes) + 2 * len(sizes)
    lines = []
    for row in rows:
        start = "".join(cell.ljust(size + 2) for cell, size in zip(row, sizes))
        # Addresses are longer than what is left of a line: they go on under themselves.
        where = textwrap.wrap(row[5], max(20, width - indent), break_on_hyphens=False)
        lines += [(start + where[0]).rstrip(), *(" " * indent + more for more in where[1:])]
    importable = sum(d.annotate is not None for d in PUBLIC.values())
    how = (
        f"{importable} of {len(PUBLIC)} have an importer. Get the data set at its source, accept its terms there, then:\n"
        "  recipes/prepare.py NAME=FOLDER_OR_ZIP --output_dir corpus\n"
        "Others are read as plain folders, without labels and patients: recipes/prepare.py FOLDER --output_dir corpus\n"
        "Counts are images or frames as others counted them. Licence unknown: not confirmed here, read it at the source."
    )
    notes = [f"{d.key}: {d.note}" for d in PUBLIC.values() if d.note]
    wrapped = [textwrap.fill(note, width, subsequent_indent="  ", break_on_hyphens=False) for note in notes]
    return "\n".join([*lines, "", how, "", *wrapped])
