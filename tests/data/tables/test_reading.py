"""Table files: separators, zip archives and Parquet, ids kept letter by letter, and what is refused."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asmil.data.tables import reading
from asmil.data.tables.reading import TableFile
from asmil.errors import DataError


def text_file(folder: Path, content: str | bytes, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "slide,value\n007,1.5\nNA,2\n"),
        ("t.csv", "slide;value\n007;1,5\nNA;2\n"),
        ("t.csv", "slide\tvalue\n007\t1.5\nNA\t2\n"),
        ("t.tsv", "slide\tvalue\r\n007\t1.5\r\nNA\t2\r\n"),
        ("t.csv", "\ufeffslide,value\n007,1.5\nNA,2\n"),
        ("T.CSV", '"slide", value \n"007",1.5\n"NA",2\n'),
    ],
)
def test_every_kind_of_text_gives_the_same_table(tmp_path: Path, name: str, content: str) -> None:
    file = TableFile.open(text_file(tmp_path, content, name))
    assert file.columns == ("slide", "value")
    frame = file.frame(text=["slide"])
    assert frame["slide"].tolist() == ["007", "NA"]
    assert frame["value"].tolist() == [1.5, 2]


def test_separator_in_a_quoted_name_does_not_count(tmp_path: Path) -> None:
    file = TableFile.open(text_file(tmp_path, 'slide,"a;b;c;d"\nx,1\n'))
    assert file.columns == ("slide", "a;b;c;d")


def test_a_table_of_as_many_genes_as_those_of_mcat(tmp_path: Path) -> None:
    genes = [f"GENE{number}_rnaseq" for number in range(20_000)]
    text = ",".join(["slide", *genes]) + "\n" + ",".join(["s1", *["0.5"] * len(genes)]) + "\n"
    file = TableFile.open(text_file(tmp_path, text))
    assert len(file.columns) == 20_001
    assert file.frame(["slide"], text=["slide"]).to_dict("list") == {"slide": ["s1"]}


def test_zipped_table(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("__MACOSX/._t.csv", "x")
        archive.writestr("t.csv", "slide,value\na,1\n")
    assert TableFile.open(path).frame()["value"].tolist() == [1]
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("u.csv", "slide\n")
    with pytest.raises(DataError, match="expected a zip archive of one table, it has 2 files; unpack it"):
        TableFile.open(path)


def test_every_damaged_byte_of_a_zipped_table_is_noticed_or_harmless(tmp_path: Path) -> None:
    path, content = tmp_path / "t.csv.zip", "slide,value\n" + "".join(f"s{number},{number}\n" for number in range(40))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("t.csv", content)
    whole = path.read_bytes()
    refused = 0
    for position in range(4, len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        try:
            assert TableFile.open(path).content == content.encode()
        except DataError:
            refused += 1
    assert refused > len(whole) // 2


def test_an_index_without_a_name_is_no_column_and_chosen_columns_are_read_only(tmp_path: Path) -> None:
    file = TableFile.open(text_file(tmp_path, ",slide,a,b\n0,x,1,2\n1,y,3,4\n"))
    assert file.columns == ("slide", "a", "b")
    frame = file.frame(["b", "slide"], text=["slide"])
    assert frame.to_dict("list") == {"slide": ["x", "y"], "b": [2, 4]}
    assert file.texts() == {"": ["0", "1"], "slide": ["x", "y"], "a": ["1", "3"], "b": ["2", "4"]}


def test_parquet_keeps_its_kinds_and_extension_types_are_refused(tmp_path: Path) -> None:
    frame = pd.DataFrame({"slide": ["007", "1e5"], "value": [1.5, None]})
    frame.to_parquet(tmp_path / "t.parquet")
    file = TableFile.open(tmp_path / "t.parquet")
    assert file.columns == ("slide", "value")
    assert file.frame(["slide"]).to_dict("list") == {"slide": ["007", "1e5"]}
    with pytest.raises(DataError, match="splits are not read from Parquet"):
        file.texts()
    table = pa.table({"id": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(16)], pa.binary(16)))})
    pq.write_table(table, tmp_path / "u.parquet")
    with pytest.raises(DataError, match="columns of Arrow extension types are not read"):
        TableFile.open(tmp_path / "u.parquet")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.xlsx", "", "spreadsheets are not read; save the sheet as CSV"),
        ("t.json", "{}", r"tables are read from \.csv, \.tsv, \.csv\.zip, \.parquet; got '\.json'"),
        ("t.csv", "", "the first line names no columns"),
        ("t.csv", "slide,label\nx,1,2\n", "line 2 has 3 fields, but the header names 2 columns; complete the header"),
        ("t.csv", "slide,note,event\na,x,1\nb,Carcinoma, NOS,1\n", "line 3 has 4 fields, .* put quotes around values"),
        ("t.csv", 'slide,note,event\n"a","x,\ny",1\nb,Carcinoma, NOS,1\n', "line 4 has 4 fields, but"),
        ("t.csv", b"slide,label\n\xff\xfe,1\n", "it is not UTF-8 text; save it as CSV"),
        ("t.csv", 'slide,label\n"x,1\n', "cannot be read as a table"),
        ("t.csv.zip", b"PK\x03\x04 cut", "cannot be read as a table"),
        ("t.parquet", b"PAR1", "cannot be read as a table"),
    ],
)
def test_what_is_no_table_is_refused_by_name(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = text_file(tmp_path, content, name)
    with pytest.raises(DataError, match=message) as caught:
        TableFile.open(path).frame(text=["slide"])
    assert str(caught.value).startswith(f"{path}: ")


def test_repeated_columns_are_refused_only_if_they_are_wanted(tmp_path: Path) -> None:
    file = TableFile.open(text_file(tmp_path, "slide,x,x\na,1,2\n"))
    assert file.frame(["slide"]).to_dict("list") == {"slide": ["a"]}
    with pytest.raises(DataError, match="columns appear more than once: x; rename or remove them"):
        file.frame()
    with pytest.raises(DataError, match="columns appear more than once: x"):
        file.texts()


def test_quoted_separators_and_line_ends_are_part_of_a_value(tmp_path: Path) -> None:
    file = TableFile.open(text_file(tmp_path, 'slide,note,event\na,"Carcinoma, NOS",1\n"b","two\nlines",0\n'))
    assert file.frame()["note"].tolist() == ["Carcinoma, NOS", "two\nlines"]
    assert file.texts()["event"] == ["1", "0"]


def test_tables_have_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_TABLE_BYTES", 100)
    path = text_file(tmp_path, "slide\n" + "x\n" * 50)
    with pytest.raises(DataError, match="106 bytes; a table may have at most 100"):
        TableFile.open(path)
    with pytest.raises(DataError, match="no such label table; correct the path"):
        TableFile.open(tmp_path / "nowhere.csv")


def test_a_spreadsheet_under_another_name_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("[Content_Types].xml", "<x/>")
    with pytest.raises(DataError, match="it is a spreadsheet under another name"):
        TableFile.open(path)
