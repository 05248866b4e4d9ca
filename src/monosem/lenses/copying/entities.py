"""Words and names that most vocabularies spell with several tokens; our own list."""

ENTITIES = tuple(
    line.strip()
    for line in """
    Leonardo DiCaprio; Marie Curie; Napoleon Bonaparte; Isaac Newton; Charles Darwin; Vincent van Gogh; Julius Caesar
    Cristiano Ronaldo; Serena Williams; Agatha Christie; Ludwig van Beethoven; Mahatma Gandhi; Nelson Mandela
    Kuala Lumpur; Buenos Aires; Addis Ababa; Reykjavik; Kathmandu; Yokohama; Marrakesh; Antananarivo; Novosibirsk
    Mississippi; Kilimanjaro; Himalayas; Madagascar; Liechtenstein; Azerbaijan; Kyrgyzstan; Uzbekistan; Mozambique
    hippopotamus; rhinoceros; chimpanzee; porcupine; hummingbird; salamander; woodpecker; grasshopper; dragonfly
    windowpane; wheelbarrow; chandelier; trampoline; saxophone; xylophone; harpsichord; accordion; kaleidoscope
    typewriter; screwdriver; lawnmower; dishwasher; refrigerator; corkscrew; umbrella stand; chessboard; skateboard
    cauliflower; artichoke; pomegranate; marshmallow; gingerbread; croissant; cappuccino; guacamole; mozzarella
    lighthouse keeper; firefighter; blacksmith; beekeeper; ventriloquist; choreographer; archaeologist; cardiologist
    photosynthesis; thermodynamics; trigonometry; plate tectonics; mitochondria; chlorophyll; haemoglobin; penicillin
    Microsoft Windows; Toyota Corolla; Nintendo; Volkswagen; Lamborghini; Spotify; Wikipedia; Instagram; YouTube
    Star Wars; Jurassic Park; Sherlock Holmes; Mickey Mouse; Robin Hood; Don Quixote; Moby Dick; Frankenstein
    Buddhism; Zoroastrianism; existentialism; impressionism; surrealism; feudalism; mercantilism; utilitarianism
    """.replace("\n", ";").split(";")
    if line.strip()
)
