//! Expressions by example: what they yield, and what is said of those that are none.

mod properties;

use super::{super::Attributes, *};

fn event() -> Event {
    let mut attributes = Attributes::new();
    for (name, value) in [
        ("id", "myid".into()),
        ("source", "https://shop.example/a".into()),
        ("wild", "https://shop.example/a_b%c".into()),
        ("specversion", "1.0".into()),
        ("type", "order.placed".into()),
        ("number", 7.into()),
        ("digits", "42".into()),
        ("truth", true.into()),
        ("word", "TRUE".into()),
        ("7", "seven".into()),
        ("left", "left".into()),
        ("umlaut", "größer".into()),
    ] {
        attributes.insert(name.into(), value);
    }
    Event::new(attributes, None).unwrap()
}

/// `VALUE` or `VALUE !KIND`, strings in quotes.
fn seen(text: &str) -> String {
    let event = event();
    let expression = Expression::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
    let Evaluated { value, error } = expression.evaluate(&event);
    let value = match &value {
        Scalar::String(text) => format!("'{text}'"),
        other => other.text().into_owned(),
    };
    match error {
        Some(failure) => {
            assert!(!failure.to_string().is_empty());
            format!("{value} !{}", failure.kind())
        }
        None => value,
    }
}

fn table(rows: &[(&str, &str)]) {
    for (text, wanted) in rows {
        assert_eq!(seen(text), *wanted, "{text}");
    }
}

#[test]
fn literals_and_attributes() {
    table(&[
        ("TRUE", "true"),
        ("fAlSe", "false"),
        ("0", "0"),
        ("007", "7"),
        ("+5", "5"),
        ("-5", "-5"),
        ("- 5", "-5"),
        ("2147483647", "2147483647"),
        ("-2147483648", "-2147483648"),
        (" \t\r\n 1", "1"),
        ("''", "''"),
        (r#"'a"b\'c'"#, r#"'a"b'c'"#),
        (r#""a'b\"c""#, r#"'a'b"c'"#),
        (r#"'\"'"#, r#"'\"'"#),
        (r"'a\nb\\c'", r"'a\nb\\c'"),
        (r"'a\\'", r"'a\\'"),
        (r"'\'\''", "''''"),
        ("'größer\n'", "'größer\n'"),
        ("id", "'myid'"),
        ("ID", "'myid'"),
        ("number", "7"),
        ("truth", "true"),
        ("7", "7"),
        ("left", "'left'"),
        ("missing", "false !missingAttribute"),
        ("(((id)))", "'myid'"),
    ]);
}

#[test]
fn operators() {
    // long because: it is a table
    table(&[
        ("NOT TRUE", "false"),
        ("NOT NOT TRUE", "true"),
        ("NOT 'TRUE'", "false"),
        ("NOT 0", "true"),
        ("NOT 'x'", "false !cast"),
        ("NOT missing", "false !missingAttribute"),
        ("-number", "-7"),
        ("--number", "7"),
        ("-digits", "-42"),
        ("-truth", "-1"),
        ("-'x'", "0 !cast"),
        ("-(-2147483648)", "0 !math"),
        ("4 * 2 + 4 / 2", "10"),
        ("4*2+4/2", "10"),
        ("10-2-3", "5"),
        ("10 -2", "8"),
        ("10 - -2", "12"),
        ("1 ++1", "2"),
        ("2 + 3 * 4", "14"),
        ("(2 + 3) * 4", "20"),
        ("100 / 10 / 5", "2"),
        ("-7 / 2", "-3"),
        ("-7 % 3", "-1"),
        ("7 % -3", "1"),
        ("-2147483648 % -1", "0"),
        ("-2147483648 / -1", "0 !math"),
        ("5 / 0", "0 !math"),
        ("5 % 0", "0 !math"),
        ("2147483647 + 1", "0 !math"),
        ("-2147483648 - 1", "0 !math"),
        ("65536 * 65536", "0 !math"),
        ("1 / missing", "0 !missingAttribute"),
        ("missing % 0", "0 !missingAttribute"),
        ("'x' + missing", "0 !missingAttribute"),
        ("'5' + TRUE", "6"),
        ("'' + 1", "0 !cast"),
        ("' 5' + 1", "0 !cast"),
        ("'+5' + 1", "6"),
        ("'2147483648' + 1", "0 !cast"),
        ("1 = 1", "true"),
        ("digits = 42", "true"),
        ("digits = '42'", "true"),
        ("digits = '042'", "false"),
        ("digits = 042", "true"),
        ("42 = digits", "true"),
        ("'042' = 42", "true"),
        ("42 = '042'", "false"),
        ("TRUE = 'true'", "true"),
        ("TRUE = 'TRUE'", "false"),
        ("'TRUE' = TRUE", "true"),
        ("word = TRUE", "true"),
        ("2 = TRUE", "true"),
        ("TRUE = 2", "false"),
        ("'x' = 1", "false !cast"),
        ("'x' != 1", "false !cast"),
        ("'x' <> 'y'", "true"),
        ("'x' != 'x'", "false"),
        ("missing != 2", "false !missingAttribute"),
        ("1 < 2", "true"),
        ("2 <= 2", "true"),
        ("1 > '0'", "true"),
        ("2 >= 3", "false"),
        ("'b' > 'a'", "false !cast"),
        ("1 < 2 < 3", "true"),
        ("3 > 2 = TRUE", "true"),
    ]);
}

#[test]
fn logic() {
    table(&[
        ("TRUE AND TRUE", "true"),
        ("TRUE AND FALSE", "false"),
        ("FALSE OR TRUE", "true"),
        ("FALSE OR FALSE", "false"),
        ("TRUE XOR TRUE", "false"),
        ("TRUE xor FALSE", "true"),
        ("FALSE AND missing", "false"),
        ("FALSE AND 1 / 0 = 1", "false"),
        ("TRUE OR missing", "true"),
        ("TRUE AND missing", "false !missingAttribute"),
        ("TRUE AND 1 / 0 != 1", "false !math"),
        ("FALSE OR 1 / 0 != 1", "false !math"),
        ("missing OR TRUE", "false !missingAttribute"),
        ("TRUE XOR missing", "false !missingAttribute"),
        ("1 AND 'true'", "true"),
        ("'x' OR TRUE", "false !cast"),
        ("TRUE OR 'x'", "true"),
        // One precedence, from the left.
        ("TRUE OR TRUE AND FALSE", "false"),
        ("FALSE AND FALSE OR TRUE", "true"),
        ("TRUE XOR TRUE OR TRUE", "true"),
        ("TRUE OR (TRUE AND FALSE)", "true"),
        ("1 = 1 AND 2 > 1 OR missing", "true"),
        // `NOT` and `-` bind closest.
        ("NOT 1 = 0", "true"),
        ("NOT FALSE = TRUE", "true"),
        ("NOT EXISTS id", "false"),
        ("EXISTS id AND NOT EXISTS missing", "true"),
        ("EXISTS ID", "true"),
        ("EXISTS 7", "true"),
        ("-1 LIKE '-_'", "true"),
    ]);
}

#[test]
fn patterns_and_sets() {
    table(&[
        ("id LIKE 'my%'", "true"),
        ("id LIKE 'MY%'", "false"),
        ("id NOT LIKE 'my%'", "false"),
        ("id not like '%x%'", "true"),
        ("id LIKE ''", "false"),
        ("'' LIKE ''", "true"),
        ("'' LIKE '%'", "true"),
        ("'' LIKE '%%'", "true"),
        ("'' LIKE '_'", "false"),
        ("'abab' LIKE 'aba%bab'", "false"),
        ("'a' LIKE 'a%a'", "false"),
        ("'aa' LIKE 'a%a'", "true"),
        ("'xaybzc' LIKE '%a%b%'", "true"),
        ("'xbyaz' LIKE '%a%b%'", "false"),
        ("'azbzc' LIKE 'a_b_c'", "true"),
        ("'ab' LIKE 'a_b'", "false"),
        ("umlaut LIKE 'gr_ßer'", "true"),
        ("umlaut LIKE 'gr__ßer'", "false"),
        ("umlaut LIKE '%öß%'", "true"),
        (r"wild LIKE '%a\_b\%c'", "true"),
        (r"'axb%c' LIKE '%a\_b\%c'", "false"),
        (r"'a\c' LIKE 'a\c'", "true"),
        (r"'a\\%' LIKE 'a\\\%'", "true"),
        (r"'it\'s' LIKE '_t\'s'", "true"),
        ("2344 LIKE '23_'", "false"),
        ("234 LIKE '23_'", "true"),
        ("TRUE LIKE '%ue'", "true"),
        ("missing LIKE '%'", "false !missingAttribute"),
        ("missing NOT LIKE '%'", "false !missingAttribute"),
        ("id LIKE 'my%' LIKE 'tr%'", "true"),
        ("1 IN (1, 2)", "true"),
        ("1 NOT IN (1, 2)", "false"),
        ("3 IN (1, 1 + 2)", "true"),
        ("'1' IN (1, 2)", "true"),
        ("1 IN ('01', 2)", "true"),
        ("'TRUE' IN (TRUE)", "false"),
        ("1 IN (1, 'x')", "true"),
        ("1 IN ('x', 1)", "false !cast"),
        ("1 NOT IN ('x', 1)", "false !cast"),
        ("missing IN (1)", "false !missingAttribute"),
        ("id IN (missing)", "false !missingAttribute"),
        ("id IN (source, 'myid') AND TRUE", "true"),
        ("TRUE = id IN ('myid')", "true"),
    ]);
}

#[test]
fn builtin_functions() {
    // long because: it is a table
    table(&[
        ("LENGTH('')", "0"),
        ("length (umlaut)", "6"),
        ("LENGTH(TRUE)", "4"),
        ("CONCAT()", "''"),
        ("CONCAT('a', 1, TRUE)", "'a1true'"),
        ("CONCAT_WS(', ')", "''"),
        ("concat_ws('-', 'a')", "'a'"),
        ("CONCAT_WS('-', 'a', 'b', '')", "'a-b-'"),
        ("CONCAT_WS()", "false !missingFunction"),
        ("LOWER('ABC')", "'abc'"),
        ("LOWER('ÄÖ')", "'äö'"),
        ("UPPER(umlaut)", "'GRÖSSER'"),
        ("TRIM(' \t\u{3000}a b\u{85}\n')", "'a b'"),
        ("TRIM('\u{200b}a\u{1}')", "'\u{200b}a\u{1}'"),
        ("LEFT('größer', 3)", "'grö'"),
        ("LEFT('abc', 0)", "''"),
        ("LEFT('abc', 10)", "'abc'"),
        ("LEFT('abc', -2)", "'abc' !functionEvaluation"),
        ("CONCAT('x', LEFT('abc', -2))", "'' !functionEvaluation"),
        ("RIGHT('größer', 3)", "'ßer'"),
        ("RIGHT('größer', 4)", "'ößer'"),
        ("RIGHT('abc', 0)", "''"),
        ("RIGHT('abc', 3)", "'abc'"),
        ("RIGHT('abc', 4)", "'abc'"),
        ("RIGHT(CONCAT('abc', 'd'), 2)", "'cd'"),
        ("RIGHT('abc', -1)", "'abc' !functionEvaluation"),
        ("SUBSTRING('abcdef', 1)", "'abcdef'"),
        ("SUBSTRING('größer', 3, 2)", "'öß'"),
        ("SUBSTRING('abcdef', 6)", "'f'"),
        ("SUBSTRING('abcdef', 7)", "'' !functionEvaluation"),
        ("SUBSTRING('abcdef', -6, 1)", "'a'"),
        ("SUBSTRING('abcdef', -7)", "'' !functionEvaluation"),
        ("SUBSTRING('abcdef', -2147483648)", "'' !functionEvaluation"),
        ("SUBSTRING('abcdef', 0, 3)", "''"),
        ("SUBSTRING('abcdef', 2, 0)", "''"),
        ("SUBSTRING('abcdef', 2, 99)", "'bcdef'"),
        ("SUBSTRING('abcdef', 2, -1)", "'' !functionEvaluation"),
        ("ABS(-10)", "10"),
        ("ABS('-10')", "10"),
        ("ABS(-2147483648)", "2147483647 !math"),
        ("ABS(-2147483648) + 0", "0 !math"),
        ("ABS(missing)", "0 !missingAttribute"),
        ("INT('-1')", "-1"),
        ("INT(FALSE)", "0"),
        ("INT('x')", "0 !cast"),
        ("BOOL('FALSE')", "false"),
        ("BOOL(-50)", "true"),
        ("BOOL('x')", "false !cast"),
        ("STRING(-1)", "'-1'"),
        ("STRING(TRUE)", "'true'"),
        ("IS_INT('12')", "true"),
        ("IS_INT('x')", "false"),
        ("IS_INT(TRUE)", "true"),
        ("IS_BOOL('True')", "true"),
        ("IS_BOOL('yes')", "false"),
        ("IS_BOOL(3)", "true"),
        ("IS_INT(missing)", "false !missingAttribute"),
        ("NOPE(missing)", "false !missingFunction"),
        ("NOPE() + 1", "0 !missingFunction"),
        ("ABS(1, 2)", "false !missingFunction"),
        ("LEFT(left, 1)", "'l'"),
        ("LENGTH('x' = 1)", "0 !cast"),
    ]);
}

#[test]
fn what_is_no_expression() {
    // long because: it is a table
    for (text, said) in [
        ("", "the expression is empty; write one, such as type = 'order.placed'"),
        (" \n", "the expression is empty; write one, such as type = 'order.placed'"),
        ("ABC(", "column 5: found the end, expected a value"),
        ("1 +", "column 4: found the end, expected a value"),
        ("1 2", "column 3: found `2`, expected an operator or the end"),
        ("id = = 1", "column 6: found `=`, expected a value"),
        ("id == 1", "column 4: found '=', which begins no word here; write ="),
        ("a && b", "column 3: found '&', which begins no word here; write AND"),
        ("!a", "column 1: found '!', which begins no word here; write NOT"),
        (
            "data.x = 1",
            "column 5: found '.', which begins no word here; an expression sees attributes only, not the data",
        ),
        ("id = ‘x’", "column 6: found '‘', which begins no word here; write ' or \""),
        ("größe = 1", "column 3: found 'ö', which begins no word here; text stands in quotes"),
        ("id =\n 'a' ?", "line 2, column 6: found '?', which begins no word here; text stands in quotes"),
        ("id = 'abc", "column 6: the string that begins here has no end; close it with '"),
        (r"id = 'abc\'", r"column 6: the string that begins here has no end (\' does not end it); close it with '"),
        (
            "'it''s'",
            "column 5: found the string 's', expected an operator or the end; a quote inside a string is written with a backslash before it",
        ),
        (
            "id LIKE 'it''s'",
            "column 13: found the string 's', expected an operator or the end; a quote inside a string is written with a backslash before it",
        ),
        (
            "id LIKE 123",
            "column 9: found `123`, expected a string in quotes; the pattern of LIKE is always written out, and no other value can be one",
        ),
        ("id NOT 5", "column 4: found `NOT`, expected an operator or the end"),
        ("id IN 'x'", "column 7: found the string 'x', expected ( and the elements of the set"),
        ("id IN ()", "column 8: found `)`, expected a value; a set has one element or more"),
        ("id IN ('a',)", "column 12: found `)`, expected a value; a set has one element or more"),
        ("ABS(1,)", "column 7: found `)`, expected a value; leave out the last comma"),
        ("(1 = 1", "column 7: found the end, expected an operator or ); the ( at column 1 is still open"),
        ("ABS(1 2)", "column 7: found `2`, expected an operator, a comma or ); the ( at column 4 is still open"),
        ("1 = 1)", "column 6: found `)`, expected an operator or the end; no ( is open"),
        ("()", "column 2: found `)`, expected a value"),
        (
            "EXISTS (id)",
            "column 8: found `(`, expected the name of an attribute; write EXISTS subject, without parentheses or quotes",
        ),
        (
            "exists 'id'",
            "column 8: found the string 'id', expected the name of an attribute; write exists subject, without parentheses or quotes",
        ),
        (
            "EXISTS AND",
            "column 8: found `AND`, expected the name of an attribute; write EXISTS subject, without parentheses or quotes",
        ),
        (
            "EXISTS",
            "column 7: found the end, expected the name of an attribute; write EXISTS subject, without parentheses or quotes",
        ),
        ("a AND AND b", "column 7: found `AND`, expected a value"),
        ("in = 1", "column 1: found `in`, expected a value"),
        (
            "subject IS NULL",
            "column 9: found `IS`, expected an operator or the end; whether there is an attribute is asked with EXISTS subject or NOT EXISTS subject",
        ),
        ("a BETWEEN 1 AND 2", "column 3: found `BETWEEN`, expected an operator or the end; write x >= 1 AND x <= 2"),
        (
            "my_ext = 1",
            "column 1: found `my_ext`, expected a value; the names of attributes have a-z and 0-9 only, those of functions a ( behind them",
        ),
        ("MD5(id)", "column 1: found `MD5`, expected the name of a function, which has letters and underscores only"),
        ("1(2)", "column 1: found `1`, expected the name of a function, which has letters and underscores only"),
        ("2147483648", "column 1: 2147483648 is no integer of 32 bits; they go from -2147483648 to 2147483647"),
        ("1 = -2147483649", "column 5: -2147483649 is no integer of 32 bits; they go from -2147483648 to 2147483647"),
        ("-(2147483648)", "column 3: 2147483648 is no integer of 32 bits; they go from -2147483648 to 2147483647"),
        ("+ 5", "column 1: found `+`, expected a value"),
        ("+id", "column 1: found `+`, expected a value"),
    ] {
        assert_eq!(Expression::parse(text).expect_err(text).0, said, "{text}");
    }
}

#[test]
fn what_can_be_known_beforehand() {
    let check = |text: &str| Expression::parse(text).unwrap().check().map_err(|e| e.0);
    for good in
        ["truth", "BOOL(id)", "NOT 1", "1 = 1", "EXISTS id", "id IN ('a')", "id LIKE 'a'", "1 < 2 AND LENGTH(id) > 1"]
    {
        assert_eq!(check(good), Ok(()), "{good}");
    }
    for (text, said) in [
        ("'a'", "the expression yields a string, so no event would pass; compare it with something"),
        ("LOWER(id)", "the expression yields a string, so no event would pass; compare it with something"),
        ("1 = 1 AND 2 IN (1, LEFT(id) = 'x')", "column 20: LEFT: the number of arguments is 1; allowed is 2"),
        ("CONCAT(substring(id), 'x') LIKE 'x'", "column 8: SUBSTRING: the number of arguments is 1; allowed is 2 to 3"),
        ("NOT (-CONCAT_WS() = 1)", "column 7: CONCAT_WS: the number of arguments is 0; allowed is 1 or more"),
    ] {
        assert_eq!(check(text), Err(said.to_owned()), "{text}");
    }
}

#[test]
fn an_expression_is_its_text() {
    let text = " type  LIKE 'a%' and\nEXISTS id ";
    let expression: Expression = text.parse().unwrap();
    assert_eq!((expression.text(), expression.to_string().as_str()), (text, text));
    let json = serde_json::to_string(&expression).unwrap();
    assert_eq!(serde_json::from_str::<Expression>(&json).unwrap(), expression);
    assert_ne!(expression, "type LIKE 'a%' AND EXISTS id".parse().unwrap());
    let error = serde_json::from_str::<Expression>("\"1 +\"").unwrap_err().to_string();
    assert!(error.starts_with("cesql: column 4: found the end, expected a value"), "{error}");
    fn shared<T: Send + Sync>(_: &T) {}
    shared(&expression);
}

#[test]
fn texts_are_bounded() {
    let long = |bytes: usize| format!("'{}'", "x".repeat(bytes - 2));
    assert!(Expression::parse(&long(LONGEST)).is_ok());
    assert_eq!(
        Expression::parse(&long(LONGEST + 1)).unwrap_err().0,
        "the expression has 4097 bytes; at most 4096 are allowed"
    );

    let nested = |times: usize| format!("{}1{}", "(".repeat(times), ")".repeat(times));
    assert_eq!(seen(&nested(NESTING)), "1");
    for (deep, column) in [
        (nested(NESTING + 1), 65),
        (nested(2000), 65),
        ("-".repeat(4000) + "id", 65),
        ("NOT ".repeat(1000) + "TRUE", 4 * 64 + 1),
        ("ABS(".repeat(1000) + "1", 4 * 65),
        ("1 IN (".repeat(600) + "1", 6 * 32 + 3),
        ("1".to_owned() + &" LIKE '1'".repeat(400), 9 * 64 + 3),
    ] {
        let said = Expression::parse(&deep).expect_err(&deep).0;
        assert_eq!(
            said,
            format!(
                "column {column}: the expression is nested deeper than 64; write it flatter, or as several filters"
            )
        );
    }
    // Long rows of operators are not deep.
    assert_eq!(seen(&format!("1{}", "+1".repeat(2000))), "2001");
    assert_eq!(seen(&format!("FALSE{}", " OR FALSE".repeat(450))), "false");
    assert_eq!(seen(&format!("FALSE{}", " OR -(1) LIKE ''".repeat(200))), "false");
    assert_eq!(seen(&format!("FALSE{}", " OR ABS(1) IN (2)".repeat(200))), "false");
    assert_eq!(seen(&format!("1 IN ({}1)", "0,".repeat(2000))), "true");
}

#[test]
fn strings_that_functions_make_are_bounded() {
    let mut attributes: Attributes = event().into_parts().0;
    attributes.insert("x".into(), "ß".repeat(32_000).into());
    let event = Event::new(attributes, None).unwrap();
    let kind = |text: &str| {
        let expression = Expression::parse(text).unwrap();
        let Evaluated { value, error } = expression.evaluate(&event);
        (value.text().len(), error.map(|e| e.kind()))
    };
    assert_eq!(kind("CONCAT(x, x)"), (128_000, None));
    assert_eq!(kind("CONCAT(x, x, x)"), (0, Some(Kind::FunctionEvaluation)));
    let many = format!("CONCAT_WS(CONCAT(x, x){})", ",''".repeat(1000));
    assert_eq!(kind(&many), (0, Some(Kind::FunctionEvaluation)));
    assert_eq!(kind("LOWER(CONCAT(x, x))"), (128_000, None));
}
