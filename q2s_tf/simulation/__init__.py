"""A simulated marketplace: the default input of q2s_tf, a catalogue, a search log and judgements.

What is modelled
    *Listings.* 140 things in 28 departments, each plain or with one of its department's modifiers: 615 product types
    ("chair", "garden chair"), with colour, size, brand, condition and material. Nouns, modifiers and attribute values
    were written by hand in English, Spanish, German, Japanese and Arabic, with synonyms (lexicon.toml). The name of a
    type is composed by the rule of each language (before, after, or a German compound); the composed names were not
    checked. Brands are composed of syllables. Each of seven countries has a mix of languages.
    *Texts.* Titles hold the type and some attributes in the word order of the language. 45% do not name what is sold
    ("Must go this week"), 12% add names of other things, and some have typing errors, capitals, no accents, or
    full-width letters. Japanese has no spaces between words. Descriptions (30% missing) add attributes, sometimes name
    the type by another synonym, and mention things and colours that are not for sale. Language and country are
    sometimes missing.
    *Photos.* 0 to 5 vectors per listing (15% have none): department, thing, modifier and colour plus noise. Half of
    the listings do not write their colour and at most show it; one in eighteen neither names nor shows what it is.
    *Shoppers.* Sessions over the day, with one to three searches, which often repeat the same wish in more words.
    Wishes start from a listing of the shopper's country, by a Zipf law over product types. Queries name a thing
    (sometimes only its first letters), a type, or a type with one to three attributes, with synonyms and typing
    errors; one in ten is in English in any country. About a quarter of the correct pairs are cross-lingual.
    *The engine behind the log.* Lexical matching of words, a dictionary, popularity and much noise: a third of the
    results are exact matches (8,000 listings; more with more).
    *Clicks, messages, replies.* Attention falls with rank (r^−0.6). Shoppers also click, and even write about,
    listings that do not match; sellers answer, late, or never. The share of (query, listing) pairs that are exact
    matches grows along the funnel, roughly (8,000 listings): 1/3 of the shown, 0.68 of the clicked, 0.87 of the
    messaged, 0.92 of those answered within 24 hours of the search. `make_marketplace` returns the measured shares.
    *Errors in the log.* Rows written twice, rows out of order, chains without a `search_id`, null users and subjects,
    unknown events, times in the far future; the log ends in the middle of conversations.
    *Raters.* Four grades (3 exact, 2 substitute, 1 complement, 0 irrelevant), given by a rule from query and listing
    (`q2s_tf.simulation.relevance.grade`) and then by three raters who make errors.

What is not modelled
    Grammar (adjectives do not agree; "silla rojo"), real prose, prices, distance, stock (each listing exists from the
    first day to the last and is sold many times). Shoppers have no preferences beyond their query and learn nothing.
    There are no seasons, trends or new words; photos are independent draws, not pictures; each word has one meaning.
    Absolute figures measured here therefore say little about a real market; differences between models do.
"""

from q2s_tf.simulation.generate import MIN_LISTINGS, START, Summary, make_marketplace

__all__ = ["MIN_LISTINGS", "START", "Summary", "make_marketplace"]
